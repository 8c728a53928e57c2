"""What TensorBoard is told of a run."""

import keras
import pytest

import keras_bond
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

pytestmark = pytest.mark.one_backend


def fit(folder, bond=None, epochs=2):
    if bond is None:
        bond = keras_bond.JBond(
            make_policy(num_layers=1),
            length_reward,
            max_prompt_length=8,
            max_completion_length=3,
            reference=True,
            seed=1,
        )
        bond.compile(keras.optimizers.SGD(1e-4))
    held_out = keras_bond.callbacks.HeldOut(
        PROMPTS[:2], ns=(1, 2), pool_size=4, num_samples=2, verbose=0
    )
    callbacks = [
        keras_bond.callbacks.AnchorEMA(0.02),
        held_out,
        keras_bond.callbacks.TensorBoard(folder, held_out),
    ]
    data = {"validation_data": PROMPTS[:2], "callbacks": callbacks}
    history = bond.fit(
        PROMPTS[:4], batch_size=2, epochs=epochs, verbose=0, **data
    )
    return bond, history.history


def events_of(folder):
    from tensorboard.backend.event_processing import event_accumulator

    return event_accumulator.EventAccumulator(
        str(folder),
        size_guidance={event_accumulator.TENSORS: 0},
    ).Reload()


def test_it_shows_a_run_whole(tmp_path):
    bond, logs = fit(tmp_path)
    events = events_of(tmp_path)
    scalars = {
        tag: {e.step: e.value for e in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }
    trained = {n for n in logs if not n.startswith("val_")}
    assert set(scalars) == trained
    for name in trained - {"held_out/" + x for x in ("kl", "win_rate")}:
        steps = sorted(scalars[name])
        assert steps[-2:] == [2, 4], name
        assert scalars[name][4] == pytest.approx(logs[name][-1]), name
    assert sorted(scalars["held_out/kl"]) == [0, 2, 4]
    validation = events_of(tmp_path / "validation")
    found = [e.value for e in validation.Scalars("reward")]
    assert found == pytest.approx(logs["val_reward"])
    texts = {
        tag: [
            e.tensor_proto.string_val[0].decode() for e in events.Tensors(tag)
        ]
        for tag in ("settings", "completions")
    }
    assert len(texts["completions"]) == 3
    assert all(
        f"    {prompt}" in texts["completions"][0] for prompt in PROMPTS[:2]
    )
    for line in (
        "trainer | `JBond`",
        "max_completion_length | `3`",
        "epochs | `2`",
    ):
        assert line in texts["settings"][0]
    picture = events.Images("best_of_n")[-1]
    assert picture.step == 4 and picture.encoded_image_string[1:4] == b"PNG"
    # The same model continues, and another one begins anew.
    fit(tmp_path, bond, epochs=1)
    assert [e.step for e in events_of(tmp_path).Scalars("loss")] == [2, 4, 6]
    fit(tmp_path, epochs=1)
    assert [e.step for e in events_of(tmp_path).Scalars("loss")] == [2]


def test_what_is_not_held_out_is_refused(tmp_path):
    with pytest.raises(TypeError, match="`held_out` must be"):
        keras_bond.callbacks.TensorBoard(tmp_path, held_out=PROMPTS)
