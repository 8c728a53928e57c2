"""A served model with a byte-pair tokenizer: strings in and out."""

import json
import shutil

import pytest

import keras_bond
from tests.hugging_face.folders import TEXT
from tests.hugging_face.folders import write_folder

# Each is traced in a process of its own, on TensorFlow whatever the backend.
pytestmark = pytest.mark.one_backend
LENGTHS = {"max_prompt_length": 32, "max_new_tokens": 6}


def test_strings_are_served(tmp_path):
    """The export itself compares ids and texts with the policy's."""
    write_folder(tmp_path / "base")
    policy = keras_bond.load_hugging_face(tmp_path / "base")
    path = keras_bond.export.export_saved_model(
        policy, tmp_path / "served", prompts=[TEXT, ""], **LENGTHS
    )
    with open(f"{path}/assets.extra/keras_bond.json") as file:
        assert json.load(file)["serves_text"]
    shutil.rmtree(path)


def test_ids_are_served_where_texts_cannot_be(tmp_path):
    write_folder(tmp_path / "base")
    file = tmp_path / "base" / "tokenizer.json"
    spec = {**json.loads(file.read_text()), "normalizer": {"type": "Lowercase"}}
    file.write_text(json.dumps(spec))
    policy = keras_bond.load_hugging_face(tmp_path / "base")
    with pytest.warns(UserWarning, match="ids only.*the normalizer Lowercase"):
        path = keras_bond.export.export_saved_model(
            policy, tmp_path / "served", verify=False, **LENGTHS
        )
    report = keras_bond.export.verify_saved_model(path)
    assert report["signatures"] == ["generate_tokens", "score_tokens"]
