"""Presets and safetensors: the trained policy comes back as it was."""

import os

import keras_hub
import numpy as np
import pytest
from keras import ops
from safetensors.numpy import load_file

import keras_bond
from tests.export.conftest import make_adapted_policy
from tests.tiny import PROMPTS
from tests.tiny import make_policy

# Of backbones as Transformers builds them.
SETTINGS = {
    "gemma": {},
    "gemma3": {
        "use_post_ffw_norm": True,
        "use_post_attention_norm": True,
        "use_query_key_norm": True,
    },
}


def test_a_preset_says_the_same_with_its_adapters_merged(tmp_path):
    """Stock and ours: equal text; the adapters are in the kernels then."""
    policy = make_adapted_policy()
    expected = policy.generate(PROMPTS, max_length=20)
    policy.save_to_preset(str(tmp_path / "stock"))
    keras_bond.export.save_preset(policy, tmp_path / "ours")
    for name in ("stock", "ours"):
        loaded = keras_hub.models.CausalLM.from_preset(str(tmp_path / name))
        assert loaded.generate(PROMPTS, max_length=20) == expected
        assert not any("lora" in v.path for v in loaded.variables)
    # The policy itself is as before.
    assert policy.generate(PROMPTS, max_length=20) == expected
    assert sorted(os.listdir(tmp_path)) == ["ours", "stock"]


def test_nothing_is_written_over_and_nothing_half(tmp_path):
    (tmp_path / "taken").mkdir()
    for save in (
        keras_bond.export.save_preset,
        keras_bond.export.save_safetensors,
    ):
        policy = make_policy("gemma")
        with pytest.raises(FileExistsError, match="`path` must not exist"):
            save(policy, tmp_path / "taken")
        policy.save_to_preset = policy.export_to_transformers = fail
        with pytest.raises(OSError, match="disk full"):
            save(policy, tmp_path / "half")
        with pytest.raises(TypeError, match="KerasHub causal language model"):
            save(policy.backbone, tmp_path / "half")
    assert os.listdir(tmp_path) == ["taken"]


def fail(path):
    open(os.path.join(path, "part"), "w").close()
    raise OSError("disk full")


def adapt(policy):
    policy.backbone.enable_lora(2)
    generator = np.random.default_rng(5)
    for variable in policy.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    return policy


@pytest.mark.parametrize("family", SETTINGS)
def test_safetensors_hold_the_adapted_kernels(family, tmp_path, monkeypatch):
    """By hand from kernel and adapters; KerasHub's own call leaves them out.

    Pins: a copy of another class that has the same backbone.
    """
    monkeypatch.delattr(keras_hub.src.models.task, "find_subclass")
    policy = adapt(make_policy(family, scale=3.0, **SETTINGS[family]))
    layer = policy.backbone.transformer_layers[0].attention.query_dense
    kernel, a, b = (
        ops.convert_to_numpy(x)
        for x in (layer._kernel, layer.lora_kernel_a, layer.lora_kernel_b)
    )
    keras_bond.export.save_safetensors(policy, tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    # (heads, hidden, head size) to (heads x head size, hidden).
    adapted = (kernel + a @ b).transpose(0, 2, 1).reshape(16, 16)
    np.testing.assert_allclose(
        weights["model.layers.0.self_attn.q_proj.weight"], adapted, rtol=1e-5
    )
    assert sorted(os.listdir(tmp_path)) == ["hf"]


@pytest.mark.parametrize("family", SETTINGS)
def test_transformers_computes_the_same(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    policy = adapt(make_policy(family, scale=3.0, **SETTINGS[family]))
    path = str(tmp_path / "hf")
    keras_bond.export.save_safetensors(policy, path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32
    )
    ids = np.array([[2, 10, 23, 20, 30, 31, 12, 13, 14, 15, 16]])
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids, bool)}
    with torch.no_grad():
        logits = model(torch.tensor(ids)).logits.numpy()
    ours = ops.convert_to_numpy(policy(inputs, training=False))
    np.testing.assert_allclose(logits, ours, atol=1e-4)


def test_parts_that_transformers_would_miss_are_refused(policy, tmp_path):
    """A Gemma 2 would be written as Gemma 1, without a word."""
    second = make_policy("gemma", final_logit_soft_cap=30.0)
    for wrong in (policy, second):
        with pytest.raises(ValueError, match="would compute something else"):
            keras_bond.export.save_safetensors(wrong, tmp_path / "hf")
    assert os.listdir(tmp_path) == []
