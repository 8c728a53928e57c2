"""A Hugging Face folder becomes a model that computes the same, or none."""

import json

import keras
import keras_hub
import numpy as np
import pytest
import tokenizers
from keras import ops
from safetensors.numpy import save_file

import keras_bond
from keras_bond.hugging_face import settings
from tests.hugging_face.folders import CONFIG
from tests.hugging_face.folders import IDS
from tests.hugging_face.folders import TEXT
from tests.hugging_face.folders import logits
from tests.hugging_face.folders import write_folder

pytestmark = pytest.mark.one_backend

LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA_2 = {
    "model_type": "gemma2",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
}


def logits_of(policy, ids=IDS):
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    return ops.convert_to_numpy(policy(inputs, training=False))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tie_word_embeddings": False, "rms_norm_eps": 1e-3},
        # As Transformers 5 writes it: KerasHub reads one of its entries.
        {"rope_theta": None, "rope_parameters": LLAMA_3},
    ],
)
def test_logits_are_those_of_the_folder(config, tmp_path):
    """KerasHub's own call drops the epsilon and the scaled embeddings."""
    weights, config = write_folder(tmp_path, **config)
    policy = keras_bond.load_hugging_face(tmp_path)
    expected = logits(weights, config, IDS[0])
    np.testing.assert_allclose(logits_of(policy)[0], expected, atol=2e-4)
    stock = keras_hub.models.Backbone.from_preset(str(tmp_path))
    assert stock.layer_norm_epsilon != config["rms_norm_eps"]


@pytest.mark.parametrize(
    "change, name",
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"head_dim": 8}, "head_dim"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": "mamba"}, "model_type='mamba'"),
        (
            {"model_type": "qwen2", "rope_scaling": {"rope_type": "yarn"}},
            "rope_scaling",
        ),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 8,
            },
            "sliding_window",
        ),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias"),
        ({"model_type": "qwen2_moe", "mlp_only_layers": [0]}, "mlp_only"),
        ({"model_type": "mistral"}, "tie_word_embeddings"),
        ({"model_type": "gemma", "rope_theta": 1e6}, "rope_theta"),
        ({"model_type": "gemma3_text", "rope_local_base_freq": 1e6}, "local"),
        (
            {"model_type": "gpt2", "n_embd": 8, "layer_norm_epsilon": 1e-3},
            "epsilon",
        ),
    ],
)
def test_what_kerashub_has_not_is_named(change, name):
    """Before a weight is read; of each kind one that it drops in silence."""
    with pytest.raises(ValueError, match=name):
        settings.check_known(settings.completed({**CONFIG, **change}))


def test_settings_of_a_backbone_are_compared_too():
    """Gemma's blocks have an epsilon of their own, and one query scale."""
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=8,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=32,
        intermediate_dim=16,
        head_dim=16,
        use_sliding_window_attention=True,
        attention_logit_soft_cap=50.0,
        final_logit_soft_cap=30.0,
    )
    settings.check_same(settings.completed(GEMMA_2), backbone)
    for change in (
        {"rms_norm_eps": 1e-5},
        {"query_pre_attn_scalar": 8},
        {"final_logit_softcapping": None},
        {"sliding_window": 512},
        {"layer_types": ["full_attention"] * 2},
    ):
        config = settings.completed({**GEMMA_2, **change})
        with pytest.raises(ValueError, match=next(iter(change))):
            settings.check_same(config, backbone)


def test_a_setting_of_another_library_is_warned_of():
    config = settings.completed({**CONFIG, "logits_scaling": 8.0})
    with pytest.warns(UserWarning, match=r"not compared.*logits_scaling"):
        settings.check_known(config)


def test_files_that_lack_something_are_named(tmp_path):
    load = keras_bond.load_hugging_face
    with pytest.raises(FileNotFoundError, match="must be a local folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="config.json"):
        load(tmp_path)
    weights, _ = write_folder(tmp_path)
    config = (tmp_path / "config.json").read_text()
    short = json.loads(config)
    del short["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(short))
    with pytest.raises(ValueError, match="'hidden_size'"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(config)
    bias = {"model.layers.0.self_attn.q_proj.bias": np.zeros(16, "float32")}
    path = tmp_path / "model.safetensors"
    save_file({**weights, **bias}, path)
    with pytest.raises(ValueError, match="all weights of the folder"):
        load(tmp_path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="model.safetensors"):
        load(tmp_path)
    save_file({"model.norm.weight": weights["model.norm.weight"]}, path)
    with pytest.raises(ValueError, match="embed_tokens"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="as safetensors"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"registered_name": "x"}')
    with pytest.raises(ValueError, match="from_preset"):
        load(tmp_path)


def test_texts_have_the_ids_of_tokenizer_json(tmp_path):
    """KerasHub's own tokenizer merges digits that the folder keeps apart."""
    write_folder(tmp_path)
    ours = keras_bond.load_hugging_face(tmp_path).preprocessor.tokenizer
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    expected = library.encode(TEXT).ids
    assert list(ours(TEXT)) == expected
    assert ours.detokenize([expected]) == [TEXT]
    stock = keras_hub.models.Tokenizer.from_preset(str(tmp_path))
    assert list(stock(TEXT)) != expected


START = tokenizers.processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", 1)]
)


@pytest.mark.parametrize(
    "tokens, start",
    [
        ({}, None),
        ({"post_processor": START}, 1),
        ({"post_processor": START, "add_bos_token": False}, None),
        ({"add_bos_token": True}, 1),
        ({"add_bos_token": True, "bos_token": {"content": "</s>"}}, 2),
    ],
)
def test_the_start_token_is_that_of_transformers(tokens, start, tmp_path):
    """SmolLM2 has a start token and does not put it before a prompt."""
    write_folder(tmp_path, tokens=tokens, eos_token_id=[2, 3])
    policy = keras_bond.load_hugging_face(tmp_path)
    tokenizer = policy.preprocessor.tokenizer
    assert tokenizer.start_token_id == start
    # Both tokens that config.json stops at.
    assert (tokenizer.end_token_id, tokenizer.end_token2_id) == (2, 3)
    ids = policy.preprocessor.generate_preprocess(["fox"], sequence_length=8)
    ids = ops.convert_to_numpy(ids["token_ids"])[0].tolist()
    bare = list(tokenizer("fox"))
    assert ids[: len(bare) + 1] == (
        [start, *bare] if start else [*bare, tokenizer.pad_token_id]
    )


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    write_folder(tmp_path, vocab_size=280)
    with pytest.raises(ValueError, match="more tokens than the model"):
        keras_bond.load_hugging_face(tmp_path)
    write_folder(tmp_path, tokens={"eos_token": "<|eot_id|>"})
    with pytest.raises(ValueError, match="eot_id"):
        keras_bond.load_hugging_face(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("eos_token_id")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match="a token that ends a text"):
        keras_bond.load_hugging_face(tmp_path)


def test_a_policy_of_a_folder_needs_no_graph(tmp_path):
    tf = pytest.importorskip("tensorflow")
    write_folder(tmp_path)
    tokenizer = keras_bond.load_hugging_face(tmp_path).preprocessor.tokenizer
    with pytest.raises(ValueError, match="does not run in a TensorFlow graph"):
        tf.data.Dataset.from_tensor_slices(["fox"]).map(tokenizer)


def test_the_dtype_is_given(tmp_path):
    write_folder(tmp_path)
    policy = keras_bond.load_hugging_face(tmp_path, dtype="bfloat16")
    assert policy.backbone.token_embedding.variable_dtype == "bfloat16"
    assert keras.config.floatx() == "float32"
