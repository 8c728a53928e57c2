"""LoRA adapters on int8 and int4 kernels."""

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_bond
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

MODES = ("int8", "int4")
# Keras says so of layers that have no kernel.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have a `quantize` method",
    "ignore:The use of `x.T` on tensors",
)


def make_bond(mode):
    policy = make_policy(num_layers=1, scale=3.0)
    if mode is not None:
        policy.backbone.quantize(mode)
    policy.backbone.enable_lora(2)
    bond = keras_bond.Bond(
        policy,
        length_reward,
        max_prompt_length=8,
        max_completion_length=3,
        num_policy_samples=2,
        num_anchor_samples=2,
        reference=True,
        seed=1,
    )
    bond.compile(keras.optimizers.Adam(0.02), **COMPILED_QUICKLY)
    return bond


def values_of(policy):
    return {v.path: ops.convert_to_numpy(v) for v in policy.variables}


def fit(bond):
    rule = keras_bond.callbacks.AnchorFixed()
    prompts = PROMPTS[:4]
    return bond.fit(prompts, batch_size=2, callbacks=[rule], verbose=0).history


@pytest.mark.parametrize(
    "mode",
    ["int8", pytest.param("int4", marks=pytest.mark.one_backend)],
)
def test_only_the_adapters_learn(mode):
    bond = make_bond(mode)
    assert {v.dtype for v in bond.policy.trainable_variables} == {"float32"}
    before = values_of(bond.policy)
    logs = fit(bond)
    changed = {
        path
        for path, value in values_of(bond.policy).items()
        if np.any(value != before[path])
    }
    assert changed and all("lora_kernel" in path for path in changed)
    assert len(changed) == len(bond.policy.trainable_variables)
    assert logs["train/skipped_steps"] == [0]
    for name in ("kl", "kl_ref", "grad_norm", "loss"):
        assert np.isfinite(logs[name]).all() and logs[name] != [0.0], name
    # With the cache and in parallel, of networks whose inputs are rounded.
    assert logs["sampling/log_prob_difference"][0] < 0.05


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.one_backend
def test_the_plan_knows_their_bytes(mode):
    bond = make_bond(mode)
    plan = keras_bond.plan(bond, batch_size=2)
    weights = next(e for e in plan.entries if e.name == "weights")
    sizes = {"float32": 4, "int8": 1}
    expected = sum(
        sizes[v.dtype] * np.prod(v.shape) for v in bond.policy.variables
    )
    assert weights.bytes == expected
    assert "merged kernels" not in str(plan)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.one_backend
def test_they_are_saved_and_loaded(mode, tmp_path):
    bond = make_bond(mode)
    fit(bond)
    drawn = bond.generate(PROMPTS)
    bond.save(tmp_path / "bond.keras")
    known = {"length_reward": length_reward}
    loaded = keras.saving.load_model(tmp_path / "bond.keras", known)
    # Keras 3.15 forgets how int4 embeddings were quantized, and rounds what
    # their head is given; the weights are the same.
    weights = zip(bond.policy.weights, loaded.policy.weights)
    for pair in weights:
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, pair))
    assert mode == "int4" or loaded.generate(PROMPTS) == drawn
    bond.save_weights(tmp_path / "bond.weights.h5")
    other = make_bond(mode)
    assert other.generate(PROMPTS) != drawn
    other.load_weights(tmp_path / "bond.weights.h5")
    assert other.generate(PROMPTS) == drawn
    fit(loaded)


@pytest.mark.one_backend
def test_they_are_exported_with_other_kernels(tmp_path):
    """int4 kernels would round most of a step away."""
    bond = make_bond("int4")
    fit(bond)
    export, policy = keras_bond.export, bond.policy
    sizes = {"max_prompt_length": 8, "max_new_tokens": 3}
    for save, arguments in (
        (export.save_preset, {}),
        (export.save_safetensors, {}),
        (export.export_saved_model, sizes),
    ):
        with pytest.raises(ValueError, match="from before `quantize`.*int4"):
            save(policy, tmp_path / "refused", **arguments)
    # As the message says.
    path = str(tmp_path / "adapters.lora.h5")
    policy.backbone.save_lora_weights(path)
    other = make_bond(None).policy
    other.backbone.load_lora_weights(path)
    for old, new in zip(policy.trainable_variables, other.trainable_variables):
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (old, new)))
    export.save_preset(other, tmp_path / "preset")
    export.save_adapters(policy, tmp_path / "adapters")
    # Without adapters nothing is merged.
    policy = make_policy(num_layers=1)
    policy.backbone.quantize("int8")
    export.save_preset(policy, tmp_path / "int8")
    loaded = keras_hub.models.CausalLM.from_preset(str(tmp_path / "int8"))
    assert loaded.generate("fox", 8) == policy.generate("fox", 8)
