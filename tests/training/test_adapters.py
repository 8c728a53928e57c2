"""Policy and anchor decode in one loop if they differ in adapters only."""

import types

import keras
import numpy as np
import pytest
from keras import ops

import keras_bond
from keras_bond.rollouts.rollout import Stream
from keras_bond.training import adapters
from tests.tiny import length_reward
from tests.tiny import make_policy

COUNTS = {"policy": 1, "anchor": 2}
LENGTHS = np.array([3, 1, 5, 6], "int32")


def make_bond(policy):
    return keras_bond.JBond(
        policy, length_reward, max_prompt_length=6, max_completion_length=8
    )


def make_adapted_bond(family="gemma3", **arguments):
    """A policy and an anchor whose adapters differ and matter."""
    policy = make_policy(family, scale=3.0, **arguments)
    policy.backbone.enable_lora(2)
    bond = make_bond(policy)
    generator = np.random.default_rng(1)
    trained = zip(policy.trainable_variables, bond.anchor.values)
    for variable in (v for pair in trained for v in pair):
        variable.assign(generator.normal(size=variable.shape) * 0.3)
    return bond


def prompts():
    generator = np.random.default_rng(0)
    ids = generator.integers(5, 40, (4, 6)).astype("int32")
    ids[np.arange(6) >= LENGTHS[:, None]] = 0
    tensors = {"prompt_ids": ids, "prompt_lengths": LENGTHS}
    return {k: ops.convert_to_tensor(v) for k, v in tensors.items()}


def draw(bond, counts):
    stream = Stream(0, "train", ops.arange(4, dtype="int32"))
    drawn = bond.rollout.draw(prompts(), counts, stream)
    return {k: ops.convert_to_numpy(v) for k, v in drawn.items()}


@pytest.mark.parametrize("family", ["gemma", "gemma3"])
def test_one_loop_draws_what_two_draw(family):
    """Pins: rows that run with the adapters, or random numbers, of others."""
    bond = make_adapted_bond(family)
    assert bond.rollout.plan_draws(prompts(), COUNTS) == [COUNTS]
    together = draw(bond, COUNTS)
    own = draw(bond, {"policy": 1})
    others = draw(bond, {"anchor": 2})
    swapped = draw(bond, {"policy": 2})
    assert (others["completion_ids"] != swapped["completion_ids"]).any()
    for name, values in together.items():
        two = np.concatenate([own[name], others[name]], axis=1)
        np.testing.assert_allclose(values, two, rtol=2e-4, err_msg=name)


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Dense(5),
        keras.layers.EinsumDense("btd,ndh->btnh", (None, 2, 3), bias_axes="h"),
    ],
)
def test_a_layer_adds_the_adapter_of_each_row(layer):
    """Pins: a bias, or the scale `alpha / rank`, that is left out."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(3, 2, 4)).astype("float32")
    layer(inputs)
    layer.bias.assign(generator.normal(size=layer.bias.shape))
    layer.trainable = False
    layer.enable_lora(2, lora_alpha=6)
    trained = [layer.lora_kernel_a, layer.lora_kernel_b]
    policy = types.SimpleNamespace(
        backbone=keras.Sequential([layer]), trainable_variables=trained
    )
    sets, alone = [], []
    for _ in range(2):
        for variable in trained:
            variable.assign(generator.normal(size=variable.shape))
        sets.append([ops.copy(variable.value) for variable in trained])
        alone.append(ops.convert_to_numpy(layer(inputs)))
    index = np.array([1, 0, 1], "int32")
    rows = adapters.AdaptersOfRows(policy, sets)
    with rows.using(ops.convert_to_tensor(index)):
        together = ops.convert_to_numpy(layer(inputs))
    expected = np.stack([alone[i][row] for row, i in enumerate(index)])
    np.testing.assert_allclose(together, expected, rtol=1e-4, atol=1e-5)


def test_weights_of_other_kinds_take_two_loops():
    """All weights, more than adapters, no samples of one set, given ones."""
    two = [{"policy": 1}, {"anchor": 2}]

    def plan(policy, inputs=(), counts=COUNTS):
        return make_bond(policy).rollout.plan_draws(inputs, counts)

    policy = make_policy()
    assert plan(policy) == two
    policy.backbone.enable_lora(2)
    assert plan(policy) == [COUNTS]
    assert plan(policy, inputs=["given_ids"]) == two
    assert plan(policy, counts={"policy": 0, "anchor": 2}) == two[1:]
    policy.backbone.token_embedding.trainable = True
    assert plan(policy) == two
    policy.backbone.token_embedding.trainable = False
    attention = policy.backbone.transformer_layers[0].attention
    attention.query_dense.activation = keras.activations.relu
    assert plan(policy) == two
