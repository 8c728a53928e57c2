"""Optional packages that are missing are named before anything is drawn."""

import importlib.util
import os

import keras
import pytest

import keras_bond
from keras_bond import packages
from keras_bond.callbacks import checks
from tests.tiny import make_policy


def never(prompts, completions):
    raise AssertionError("something was drawn")


@pytest.fixture
def without(monkeypatch):
    find = importlib.util.find_spec

    def hide(*names):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *a: None if name in names else find(name, *a),
        )

    return hide


@pytest.mark.parametrize("as_a_list", [True, False])
def test_tensorboard_is_looked_for_first(without, tmp_path, as_a_list):
    policy = make_policy(num_layers=1)
    bond = keras_bond.Bond(
        policy, never, max_prompt_length=9, max_completion_length=2
    )
    bond.compile(keras.optimizers.SGD(1e-5))
    reward_model = keras_bond.RewardModel(policy)
    reward_model.compile(keras.optimizers.SGD(1e-5))
    board = keras.callbacks.TensorBoard(tmp_path)
    board = [board] if as_a_list else board
    without("tensorboard")
    message = (
        "^`TensorBoard` needs packages .*: `pip install tensorboard`, or "
        "keras_bond with its extra `tensorboard`. Received: "
    )
    for run in (
        lambda: bond.fit(["fox"], callbacks=board, verbose=0),
        lambda: bond.evaluate(["fox"], callbacks=board, verbose=0),
        lambda: reward_model.fit(
            [{"chosen": "a", "rejected": "b"}], callbacks=board, verbose=0
        ),
    ):
        with pytest.raises(ImportError, match=message):
            run()


def test_the_picture_in_tensorboard_is_looked_for_first(without, tmp_path):
    held_out = keras_bond.callbacks.HeldOut(["fox", "dog"])
    without("matplotlib")
    keras_bond.callbacks.TensorBoard(tmp_path)
    message = "pip install matplotlib`, .*its extra `tensorboard`"
    with pytest.raises(ImportError, match=message):
        keras_bond.callbacks.TensorBoard(tmp_path, held_out)


@pytest.mark.parametrize("directory", ["run", "gs://run", "/run"])
def test_orbax_needs_an_absolute_path(directory):
    """It loses what it saves otherwise, and Keras ignores the error."""
    callback = keras.callbacks.OrbaxCheckpoint.__new__(
        keras.callbacks.OrbaxCheckpoint
    )
    callback.directory = directory
    if directory != "run":
        assert checks.as_list(callback) == [callback]
        return
    with pytest.raises(ValueError, match="must be an absolute path: `os.path"):
        checks.as_list(callback)


def test_safetensors_are_looked_for_first(without, tmp_path):
    policy = make_policy(num_layers=1)
    without("safetensors")
    for name, run in {
        "load_hugging_face": lambda: keras_bond.load_hugging_face(tmp_path),
        "save_safetensors": lambda: keras_bond.export.save_safetensors(
            policy, tmp_path / "a"
        ),
        "save_adapters": lambda: keras_bond.export.save_adapters(
            policy, tmp_path / "b"
        ),
    }.items():
        with pytest.raises(ImportError, match=f"`{name}` .*install safetens"):
            run()
    assert not list(tmp_path.iterdir())


def test_compiled_code_is_silenced_too_and_only_inside(capfd):
    with packages.silenced():
        os.write(2, b"inside")
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"
