"""A policy is trained on what it sees: pictures go through the whole step."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_bond
from keras_bond.backend import devices
from tests.pictures import SIZE
from tests.pictures import make_policy
from tests.pictures import picture
from tests.pictures import prompts_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import length_reward

FAMILIES = ["gemma3", "gemma4"]
# The larger Gemma 4: the tokens of an image see each other.
SEEING = {"use_vision_bidirectional_attention": True}


class Reward:
    """Scores by the length, and remembers the pictures that it was given."""

    def __init__(self):
        self.images = []

    def __call__(self, prompts, completions, images):
        self.images += images
        return [float(len(completion)) for completion in completions]


def make_bond(policy, reward=None, **arguments):
    arguments = {"seed": 1, "reference": True, **arguments}
    bond = keras_bond.Bond(
        policy,
        reward or Reward(),
        max_prompt_length=30,
        max_completion_length=5,
        num_policy_samples=2,
        num_anchor_samples=2,
        **arguments,
    )
    bond.compile(keras.optimizers.SGD(1e-3), **COMPILED_QUICKLY)
    return bond


def collect(bond, data):
    """A batch of all prompts, drawn and scored as `evaluate` does."""
    batches = bond._to_batches(data, None, len(data["prompts"]))
    bond._sources["test"] = batches
    (inputs,) = batches[0]
    inputs = {name: devices.to_device(x) for name, x in inputs.items()}
    return bond.collect(inputs, training=False)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "family, backbone", [*[(f, {}) for f in FAMILIES], ("gemma4", SEEING)]
)
def test_decoding_and_the_parallel_pass_see_the_same(family, backbone):
    """Pictures change the log-probabilities of their own prompt, and alone.

    Pins: the tokens of a picture read again as text while the completion of a
    shorter prompt is drawn; and KerasHub's blocks of Gemma 4, which forget the
    attention within a picture where there is a cache.
    """
    bond, data = make_bond(make_policy(family, **backbone)), prompts_of(family)
    batch = collect(bond, data)
    log_probs = numpy(bond(batch)["log_probs"])
    np.testing.assert_allclose(
        log_probs, numpy(batch["sampling_log_probs"]), atol=1e-4
    )
    data["images"] = [[picture(8)], [picture(2), picture(9)], []]
    other = collect(bond, data)
    changed = bond({**batch, "images": other["images"]})["log_probs"]
    changes = numpy(changed) - log_probs
    assert np.abs(changes[:2]).max(axis=1).min() > 1e-2
    np.testing.assert_allclose(changes[2], 0.0, atol=1e-5)


@pytest.mark.one_backend
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_kerashubs_generate(family):
    """Token for token, prompts with one picture, two and none in a batch."""
    policy, data = make_policy(family, seed=3), prompts_of(family)
    bond = make_bond(policy, temperature=1e-4, stop_token_ids=(59,))
    samples, _ = bond.draw_scored(data)
    policy.compile(sampler="greedy", **COMPILED_QUICKLY)
    generate = policy.make_generate_function()
    for i, (prompt, images) in enumerate(zip(*data.values())):
        given = {"prompts": [prompt]}
        if images:
            given["images"] = np.stack(images)[None]
        inputs = policy.preprocessor.generate_preprocess(
            given, sequence_length=40
        )
        length = int(np.sum(numpy(inputs["padding_mask"])))
        drawn = samples.completion_ids[i]
        expected = numpy(generate(inputs, None)["token_ids"])[0, length:]
        assert drawn == expected[: len(drawn)].tolist()


@pytest.mark.one_backend
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_kerashubs_own_pass(family):
    """The backbone with KerasHub's preprocessor, and NumPy's log-softmax."""
    policy, data = make_policy(family), prompts_of(family)
    bond = make_bond(policy)
    batch = collect(bond, data)
    log_probs = numpy(bond(batch)["log_probs"])
    for i in (0, 1):
        inputs = policy.preprocessor.generate_preprocess(
            {
                "prompts": [data["prompts"][i]],
                "images": np.stack(data["images"][i])[None],
            },
            sequence_length=40,
        )
        inputs = {name: numpy(value) for name, value in inputs.items()}
        start = int(inputs["padding_mask"].sum())
        drawn = numpy(batch["completion_ids"])[i, 0]
        drawn = drawn[numpy(batch["mask"])[i, 0]]
        end = start + len(drawn)
        inputs["token_ids"][0, start:end] = drawn
        inputs["padding_mask"][0, :end] = True
        names = policy.backbone.input
        logits = policy({name: inputs[name] for name in names})
        logits = numpy(logits)[0, start - 1 : end - 1].astype("float64")
        normalizers = np.log(np.exp(logits).sum(axis=1))
        expected = logits[np.arange(len(drawn)), drawn] - normalizers
        np.testing.assert_allclose(log_probs[i, 0], expected.sum(), atol=1e-4)


@pytest.mark.parametrize(
    "family",
    [pytest.param("gemma3", marks=pytest.mark.one_backend), "gemma4"],
)
def test_training_on_pictures(family):
    """`fit` on every backend, with log-probabilities as in decoding.

    Rewards get the pictures as they were given, those of a prompt for each of
    its completions. The vision encoder stays, and the anchor has no copy.
    """
    policy, reward = make_policy(family), Reward()
    bond, data = make_bond(policy, reward), prompts_of(family)
    encoder = policy.backbone.vision_encoder
    values = [numpy(v) for v in encoder.variables]
    logs = bond.fit(data, batch_size=3, shuffle=False, verbose=0).history
    assert logs["sampling/log_prob_difference"][0] < 1e-5
    assert logs["train/updated_fraction"][0] > 0
    counts = [len(images) for images in reward.images]
    assert counts == [1] * 4 + [2] * 4 + [0] * 4
    np.testing.assert_array_equal(reward.images[4][1], picture(3))
    for variable, value in zip(encoder.variables, values):
        np.testing.assert_array_equal(numpy(variable), value)
    assert not encoder.trainable_variables
    assert len(bond.anchor.values) == len(policy.trainable_variables)


@pytest.mark.one_backend
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_in_parts(family):
    """Rollouts and gradients in parts, LoRA, and `evaluate` afterwards."""
    policy, data = make_policy(family), prompts_of(family)
    policy.backbone.enable_lora(2)
    bond = make_bond(policy)
    logs = bond.evaluate(data, batch_size=2, return_dict=True, verbose=0)
    assert logs["kl_ref"] == pytest.approx(0.0, abs=1e-5)
    bond.compile(
        keras.optimizers.Adam(0.1),
        rollout_batch_size=2,
        gradient_accumulation_steps=2,
        rematerialize=True,
        **COMPILED_QUICKLY,
    )
    bond.fit(data, batch_size=2, verbose=0)
    logs = bond.evaluate(data, batch_size=2, return_dict=True, verbose=0)
    assert logs["kl_ref"] > 1e-4
    assert logs["sampling/log_prob_difference"] < 1e-5
    assert len(bond.generate(data, num_samples=2)[0]) == 2


@pytest.mark.one_backend
def test_one_picture_does_not_depend_on_the_others_of_its_batch():
    """Pins: Gemma 4 pools all pictures of a batch by the widest of them."""
    bond = make_bond(make_policy("gemma4"))
    wide, tall = (
        picture(1, SIZE // 2, 2 * SIZE),
        picture(2, 2 * SIZE, SIZE // 2),
    )
    mark = prompts_of("gemma4")["prompts"][0]
    both = {"prompts": [mark, mark], "images": [tall, wide]}
    alone = {"prompts": [mark], "images": [tall]}
    found = [
        numpy(collect(bond, data)["images"]["image_embeddings"])
        for data in (both, alone)
    ]
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)
    assert np.abs(found[0][0] - found[0][1]).max() > 1e-2


@pytest.mark.one_backend
def test_held_out_prompts_with_pictures():
    """KL and pool of the initial policy are measured on what it sees."""
    bond, data = make_bond(make_policy("gemma3")), prompts_of("gemma3")
    held_out = keras_bond.callbacks.HeldOut(
        data, num_samples=2, pool_size=4, ns=(1, 2), verbose=0
    )
    bond.compile(keras.optimizers.SGD(1.0), **COMPILED_QUICKLY)
    bond.fit(data, batch_size=3, verbose=0, callbacks=[held_out])
    samples, _ = bond.draw_scored(data, 2)
    point = held_out.points[-1]
    kl = bond.evaluate(data, batch_size=3, return_dict=True, verbose=0)[
        "kl_ref"
    ]
    assert 0 < point["kl"] < 10 * kl and held_out.points[0]["kl"] < 1e-5
    unseen = {name: [*c] for name, c in samples.columns.items()}
    unseen["images"] = [[picture(9)] * len(x) for x in unseen["images"]]
    others = type(samples)(**{**vars(samples), "columns": unseen})
    changes = np.abs(bond.kls_of(others) - bond.kls_of(samples))
    assert changes[:4].min() > 0 and changes[4:].max() < 1e-6


@pytest.mark.one_backend
def test_models_that_would_not_see_the_pictures_are_refused():
    policy, data = make_policy("gemma3"), prompts_of("gemma3")
    model = keras.Sequential(
        [keras.layers.Lambda(lambda x: ops.sum(x["token_ids"], axis=1))]
    )
    with pytest.raises(ValueError, match="reads text, without the images"):
        make_bond(policy, model).evaluate(data, verbose=0)
    bond = make_bond(policy, estimator="learned")
    with pytest.raises(ValueError, match="quantile model reads text"):
        bond.fit(data, batch_size=3, verbose=0)
    with pytest.raises(ValueError, match="quantile model reads text"):
        bond.quantile_examples(data, 2)


def test_a_saved_trainer_sees_the_pictures_again(tmp_path):
    """Pins: an encoder that is frozen again after it was loaded as frozen."""
    bond = make_bond(make_policy("gemma3"), length_reward)
    data = prompts_of("gemma3")
    bond.save(tmp_path / "bond.keras")
    loaded = keras.saving.load_model(
        tmp_path / "bond.keras", custom_objects={"length_reward": length_reward}
    )
    assert loaded.generate(data) == bond.generate(data)
