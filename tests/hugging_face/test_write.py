"""What is written of a folder's model can be loaded, or is not written."""

import json
import os

import keras
import keras_hub
import numpy as np
import pytest
import tokenizers
from keras import ops
from safetensors.numpy import load_file

import keras_bond
from keras_bond.training import round_trip
from tests.hugging_face.folders import IDS
from tests.hugging_face.folders import TEXT
from tests.hugging_face.folders import write_folder
from tests.hugging_face.test_load import logits_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import length_reward

pytestmark = pytest.mark.one_backend

TEMPLATE = "{% for turn in messages %}{{ turn['content'] }}{% endfor %}"


def adapted(folder, rank=2, targets=None):
    """A policy of a folder whose adapters change what it says."""
    policy = keras_bond.load_hugging_face(folder)
    policy.backbone.enable_lora(rank, target_layer_names=targets)
    generator = np.random.default_rng(5)
    for variable in policy.trainable_variables:
        variable.assign(generator.normal(size=variable.shape) * 0.3)
    return policy


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "base", tokens={"chat_template": TEMPLATE})
    return tmp_path / "base"


def test_a_trained_folder_is_saved_and_loaded_twice(folder, tmp_path):
    """Llama's config has neither the tied embeddings nor the tokens."""
    policy = adapted(folder)
    bond = keras_bond.Bond(
        policy, length_reward, max_prompt_length=8, max_completion_length=4
    )
    bond.compile(keras.optimizers.Adam(1e-4), **COMPILED_QUICKLY)
    bond.fit(["the fox", "1234"], batch_size=2, verbose=0)
    expected = logits_of(policy)
    loaded = bond
    for i in range(2):
        loaded.save(tmp_path / f"{i}.keras")
        loaded = keras.saving.load_model(
            tmp_path / f"{i}.keras",
            custom_objects={"length_reward": length_reward},
        )
        found = logits_of(loaded.policy)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        tokenizer = loaded.policy.preprocessor.tokenizer
        assert list(tokenizer(TEXT)) == list(
            policy.preprocessor.tokenizer(TEXT)
        )
    keras_bond.export.save_preset(policy, tmp_path / "preset")
    again = keras_hub.models.CausalLM.from_preset(str(tmp_path / "preset"))
    np.testing.assert_allclose(logits_of(again), expected, atol=1e-5)
    assert again.preprocessor.tokenizer.start_token is None


def test_what_could_not_be_loaded_is_not_written(folder, tmp_path):
    """KerasHub's own loader forgets the special tokens."""
    policy = keras_hub.models.CausalLM.from_preset(str(folder))
    bond = keras_bond.Bond(
        policy, length_reward, max_prompt_length=8, max_completion_length=4
    )
    lost = r"(?s)Nothing was written.*<\|im_end\|>' \(lost\)"
    with pytest.raises(ValueError, match=lost):
        bond.save(tmp_path / "run.keras")
    for write in (
        keras_bond.export.save_preset,
        keras_bond.export.save_safetensors,
    ):
        with pytest.raises(ValueError, match=lost):
            write(policy, tmp_path / "out")
    assert os.listdir(tmp_path) == ["base"]


def test_a_split_that_was_changed_by_hand_is_not_saved():
    tokens = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    tokens += ["<|start_header_id|>", "<|end_header_id|>", "a", "b", "ab"]
    tokenizer = keras_hub.models.Llama3Tokenizer(
        {token: i for i, token in enumerate(tokens)}, ["a b"]
    )
    by_hand = keras_hub.models.Llama3Tokenizer(
        tokenizer.vocabulary, tokenizer.merges
    )
    digits = tokenizers.pre_tokenizers.Digits(True)
    by_hand._tokenizer.pre_tokenizer = digits
    round_trip.check(tokenizer)
    with pytest.raises(ValueError, match="pre_tokenizer=Digits"):
        round_trip.check(by_hand)


def test_safetensors_come_back_with_their_tokenizer(folder, tmp_path):
    policy = adapted(folder)
    keras_bond.export.save_safetensors(policy, tmp_path / "hf")
    again = keras_bond.load_hugging_face(tmp_path / "hf")
    np.testing.assert_allclose(logits_of(again), logits_of(policy), atol=1e-5)
    # The preprocessor, which KerasHub's export cannot write, is still there.
    assert list(policy.preprocessor.tokenizer(TEXT)) == list(
        again.preprocessor.tokenizer(TEXT)
    )
    template = again.preprocessor.tokenizer.chat_template
    assert template == policy.preprocessor.tokenizer.chat_template == TEMPLATE
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rms_norm_eps"] == 1e-2


ALL = ["query", "key", "value", "attention_output", "feedforward_gate_dense"]


@pytest.mark.parametrize("targets", [None, ALL])
def test_adapters_are_the_difference_of_the_kernels(targets, folder, tmp_path):
    """In NumPy: base + B A is what `save_safetensors` merges."""
    policy = adapted(folder, targets=targets)
    keras_bond.export.save_safetensors(policy, tmp_path / "hf")
    keras_bond.export.save_adapters(policy, tmp_path / "lora", base_model="b")
    base = load_file(folder / "model.safetensors")
    merged = load_file(tmp_path / "hf" / "model.safetensors")
    adapters = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"]
    assert config["base_model_name_or_path"] == "b"
    for name, weight in base.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        a = adapters.pop(f"{prefix}.lora_A.weight", None)
        b = adapters.pop(f"{prefix}.lora_B.weight", None)
        expected = weight if a is None else weight + b @ a
        np.testing.assert_allclose(merged[name], expected, atol=1e-5)
    assert not adapters


def test_adapters_that_would_miss_something_are_refused(folder, tmp_path):
    save = keras_bond.export.save_adapters
    policy = keras_bond.load_hugging_face(folder)
    with pytest.raises(ValueError, match="must have LoRA adapters"):
        save(policy, tmp_path / "lora")
    policy.backbone.enable_lora(2)
    policy.backbone.layer_norm.trainable = True
    with pytest.raises(ValueError, match="train its adapters only"):
        save(policy, tmp_path / "lora")
    other = adapted(folder, targets=["query", "token_embedding"])
    with pytest.raises(ValueError, match="token_embedding/lora_embeddings"):
        save(other, tmp_path / "lora")
    assert os.listdir(tmp_path) == ["base"]


def test_transformers_and_peft_read_them(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    policy = adapted(folder)
    keras_bond.export.save_safetensors(policy, tmp_path / "hf")
    keras_bond.export.save_adapters(policy, tmp_path / "lora")
    load = transformers.AutoModelForCausalLM.from_pretrained
    merged = load(tmp_path / "hf", dtype=torch.float32)
    base = load(folder, dtype=torch.float32)
    adapted_base = peft.PeftModel.from_pretrained(base, tmp_path / "lora")
    for model in (merged, adapted_base.eval()):
        with torch.no_grad():
            found = model(torch.tensor(IDS)).logits.numpy()
        np.testing.assert_allclose(found, logits_of(policy), atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer(TEXT).input_ids == list(
        policy.preprocessor.tokenizer(TEXT)
    )
    assert ops.shape(merged.lm_head.weight) == (300, 16)
