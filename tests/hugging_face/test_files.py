"""Files of a folder that cannot be read are named, in one sentence."""

import json

import numpy as np
import pytest

import keras_bond
from keras_bond.hugging_face import load
from tests.hugging_face.folders import write_folder

pytestmark = pytest.mark.one_backend

INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "tokenizer_config.json", INDEX],
)
@pytest.mark.parametrize("text", ["{", "[]", "null", "5"])
def test_what_is_no_object_of_json_is_named(name, text, tmp_path):
    write_folder(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(
        ValueError, match=rf"^{name} must (be|hold).*{tmp_path}"
    ):
        keras_bond.load_hugging_face(tmp_path)


BPE = {"type": "BPE", "vocab": {"a": 0}, "merges": []}


@pytest.mark.parametrize(
    "name, changes, text",
    [
        ("config.json", {"hidden_size": "16"}, "`hidden_size` .*integer"),
        ("config.json", {"num_attention_heads": 0}, "positive integer"),
        ("config.json", {"rope_theta": "1"}, "`rope_theta` .*a number"),
        ("config.json", {"text_config": 5}, "`text_config` .*an object"),
        ("config.json", {"layer_types": 5}, "`layer_types` .*a list"),
        ("config.json", {"model_type": ["a"]}, "`model_type` .*a string"),
        ("config.json", {"text_config": {"vocab_size": "x"}}, "`vocab_size`"),
        ("tokenizer.json", {"model": None}, "^tokenizer.json must be"),
        ("tokenizer.json", {"model": {**BPE, "vocab": []}}, "^tokenizer.json"),
        ("tokenizer.json", {"added_tokens": [5]}, "^tokenizer.json must be"),
        ("tokenizer.json", {"post_processor": [1]}, "^tokenizer.json must be"),
        (
            "tokenizer.json",
            {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}},
            "must hold byte pairs.*a model Unigram",
        ),
        (
            "tokenizer.json",
            {"model": {**BPE, "byte_fallback": True}},
            "must hold byte pairs.*falls back to bytes",
        ),
        ("tokenizer_config.json", {"eos_token": ["a"]}, "`eos_token` in tok"),
        ("tokenizer_config.json", {"pad_token": 5}, "`pad_token` in tokenizer"),
        (INDEX, {"weight_map": ["a"]}, "must have a `weight_map`"),
        (INDEX, {"weight_map": {"a": 5}}, "must have a `weight_map`"),
        (INDEX, {"weight_map": {}}, "must have a `weight_map`"),
        (INDEX, {"weight_map": {"a": "b.safetensors"}}, "without .'b.safe"),
    ],
)
def test_entries_of_the_wrong_kind_are_named(name, changes, text, tmp_path):
    write_folder(tmp_path)
    change(tmp_path / name, **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        keras_bond.load_hugging_face(tmp_path)


def change(path, **entries):
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **entries}))


@pytest.mark.parametrize(
    "content", [b"[]", b'{"a": 5}', b"", b"version https://git-lfs.github.com"]
)
def test_weights_that_are_no_safetensors_are_named(content, tmp_path):
    write_folder(tmp_path)
    length = len(content).to_bytes(8, "little") if content[:1] in b"[{" else b""
    (tmp_path / "model.safetensors").write_bytes(length + content)
    with pytest.raises(ValueError, match="^model.safetensors must be a whole"):
        keras_bond.load_hugging_face(tmp_path)


@pytest.mark.parametrize("family", ["gemma", "gemma3_text", "mistral"])
def test_a_family_without_its_sentence_piece_model_is_named(family, tmp_path):
    """As Transformers 5 saves it; Mistral also has byte-level tokenizers."""
    write_folder(tmp_path)
    change(tmp_path / "config.json", model_type=family)
    if family == "mistral":
        assert load.load_tokenizer(tmp_path).end_token_id == 2
        change(
            tmp_path / "tokenizer.json", model={**BPE, "byte_fallback": True}
        )
    with pytest.raises((ValueError, FileNotFoundError), match="SentencePiece"):
        load.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_text("x")
    with pytest.raises(ValueError, match="^tokenizer.model must be a Sentence"):
        load.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "dtype", ["bf16", "half", 5, "int8", "int8_from_float32"]
)
def test_a_wrong_dtype_is_not_the_folders_fault(dtype):
    with pytest.raises(ValueError, match='^`dtype` must be "float32", "bfloat'):
        keras_bond.load_hugging_face("nowhere", dtype=dtype)


def test_what_is_no_path_is_named():
    for folder in (None, 5, b"a"):
        with pytest.raises(TypeError, match="`folder` must be the path"):
            keras_bond.load_hugging_face(folder)


def test_a_folder_needs_no_class_of_transformers(tmp_path):
    write_folder(tmp_path, architectures=None)
    policy = keras_bond.load_hugging_face(tmp_path, dtype=np.dtype("float32"))
    assert policy.backbone.vocabulary_size == 300
