"""Which axis of which variable is split, and what is refused."""

import re

import keras
import pytest

import keras_bond
from keras_bond.backend import devices
from keras_bond.distribution.layouts import split_axis
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

BLOCK = "decoder_block_3/"
ON_JAX = keras.config.backend() == "jax"


@pytest.fixture(autouse=True)
def no_distribution_afterwards():
    yield
    keras.distribution.set_distribution(None)


def make_bond(policy, **compile_arguments):
    bond = keras_bond.JBond(
        policy, length_reward, max_prompt_length=12, max_completion_length=5
    )
    bond.compile("sgd", **compile_arguments)
    return bond


@pytest.mark.parametrize(
    "path, shape, axis",
    [
        ("token_embedding/embeddings", (64, 16), 0),
        ("token_embedding/embeddings", (63, 16), 1),
        (BLOCK + "attention/query/kernel", (8, 16, 4), 0),
        # Fewer heads than devices: along the width.
        (BLOCK + "attention/key/kernel", (1, 16, 4), 1),
        (BLOCK + "attention/query/lora_kernel_a", (8, 16, 2), 0),
        # The kernel's last axis is whole, and so is that of its adapter.
        (BLOCK + "attention/query/lora_kernel_b", (2, 4), None),
        (BLOCK + "attention/attention_output/kernel", (8, 4, 16), 0),
        (BLOCK + "ffw_gating/kernel", (16, 32), 1),
        (BLOCK + "ffw_gating_2/kernel", (16, 32), 1),
        (BLOCK + "ffw_linear/kernel", (32, 16), 0),
        (BLOCK + "pre_attention_norm/scale", (16,), None),
        ("final_normalization/scale", (16,), None),
    ],
)
def test_the_axis_that_eight_devices_share(path, shape, axis):
    assert split_axis(path, shape, 8) == axis


def test_what_nothing_divides_stays_whole():
    assert split_axis("token_embedding/embeddings", (63, 15), 8) is None


@pytest.mark.skipif(ON_JAX, reason="what the other backends say")
def test_other_backends_say_that_they_cannot():
    with pytest.raises(ValueError, match="on the JAX backend only"):
        keras_bond.distribution.ModelParallel(None)


@pytest.mark.skipif(ON_JAX, reason="what the other backends say")
def test_a_distribution_on_another_backend_is_refused(monkeypatch):
    policy = make_policy(num_layers=1)
    monkeypatch.setattr(keras.distribution, "distribution", lambda: object())
    with pytest.raises(ValueError, match="on the JAX backend only"):
        make_bond(policy)


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="a strategy of TensorFlow"
)
def test_a_tensorflow_strategy_is_refused(monkeypatch):
    import tensorflow as tf

    class MirroredStrategy:
        num_replicas_in_sync = 2

    policy = make_policy(num_layers=1)
    monkeypatch.setattr(tf.distribute, "get_strategy", MirroredStrategy)
    message = "needs .* the JAX backend: .* Received: tf.distribute.Mirrored"
    with pytest.raises(ValueError, match=message):
        make_bond(policy)


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="processes of PyTorch"
)
def test_processes_of_pytorch_are_refused(monkeypatch):
    import torch

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="Received: torch.distributed"):
        make_bond(make_policy(num_layers=1))


jax_only = pytest.mark.skipif(
    not ON_JAX, reason="Keras distributes on the JAX backend only"
)


def mesh(*shape):
    return keras.distribution.DeviceMesh(shape, ("batch", "model"))


@jax_only
def test_anchor_and_optimizer_live_where_their_variable_does():
    keras.distribution.set_distribution(
        keras_bond.distribution.ModelParallel(mesh(2, 4))
    )
    policy = make_policy(num_layers=1, num_query_heads=4, num_key_value_heads=4)
    policy.backbone.enable_lora(2)
    bond = make_bond(policy)
    bond.fit(PROMPTS, batch_size=8, verbose=0)
    trained = policy.trainable_variables
    places = [v.value.sharding.spec for v in trained]
    assert any("model" in str(place) for place in places)
    assert [v.value.sharding.spec for v in bond.anchor.values] == places


@jax_only
def test_a_batch_that_does_not_spread_is_refused():
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    bond = make_bond(make_policy(num_layers=1))
    message = "choose batch_size=8, .* Received: batch_size=6, 8 shards"
    with pytest.raises(ValueError, match=message):
        bond.fit(PROMPTS, batch_size=6, verbose=0)


@jax_only
def test_parts_that_do_not_spread_are_refused():
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    bond = make_bond(make_policy(num_layers=1), gradient_accumulation_steps=2)
    message = "`gradient_accumulation_steps` must leave every part with a mul"
    with pytest.raises(ValueError, match=message):
        bond.fit(PROMPTS, batch_size=8, verbose=0)


@jax_only
def test_parts_change_nothing_on_two_by_four():
    """Rows keep their places, and every device has some of each part."""
    losses = {}
    for parts in (1, 2):
        keras.distribution.set_distribution(
            keras_bond.distribution.ModelParallel(mesh(2, 4))
        )
        bond = make_bond(
            make_policy(num_layers=1),
            gradient_accumulation_steps=parts,
            rollout_batch_size=8 // parts,
        )
        bond.seed = 1
        history = bond.fit(PROMPTS, batch_size=8, verbose=0)
        losses[parts] = history.history["loss"][0]
    assert losses[1] == pytest.approx(losses[2], abs=1e-5)


@jax_only
def test_few_prompts_are_generated_on_many_devices():
    alone = make_bond(make_policy(num_layers=1)).generate(PROMPTS[:3], seed=3)
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    bond = make_bond(make_policy(num_layers=1))
    assert bond.generate(PROMPTS[:3], seed=3) == alone


@jax_only
def test_a_policy_built_before_the_distribution_is_refused():
    policy = make_policy(num_layers=1)
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    message = "set_distribution.* Received: a policy on 1 devices, .* over 8"
    with pytest.raises(ValueError, match=message):
        make_bond(policy)


@jax_only
def test_a_layout_map_that_matches_nothing_is_refused():
    layout_map = keras.distribution.LayoutMap(mesh(1, 8))
    layout_map["no_such_layer/kernel"] = ("model",)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layout_map)
    )
    policy = make_policy(num_layers=1)
    message = re.escape("Received: ") + r"\d+ variables, all of them whole"
    with pytest.raises(ValueError, match=message):
        make_bond(policy)


@jax_only
def test_a_mesh_needs_two_axes():
    line = keras.distribution.DeviceMesh((8,), ("batch",))
    with pytest.raises(ValueError, match="must have two axes"):
        keras_bond.distribution.ModelParallel(line)
    with pytest.raises(TypeError, match="DeviceMesh"):
        keras_bond.distribution.ModelParallel("2x4")


@jax_only
def test_split_and_join_are_inverse(monkeypatch):
    """Every device keeps its rows: row 0 to 3 of 8 on the first of two."""
    import numpy as np

    from keras_bond.backend import parts

    monkeypatch.setattr(devices, "num_replicas", lambda: 2)
    rows = keras.ops.arange(8)
    split = parts.split(rows, 2)
    np.testing.assert_array_equal(split, [[0, 1, 4, 5], [2, 3, 6, 7]])
    np.testing.assert_array_equal(parts.join(split), rows)
