"""Folders with SentencePiece keep their chat template in every form."""

import json

import keras
import keras_hub
import pytest
from keras_hub.src.utils.preset_utils import find_subclass

import keras_bond
from keras_bond.data.tokenizer import same_tokens
from keras_bond.hugging_face import load
from tests.export.test_presets import SETTINGS
from tests.export.test_presets import adapt
from tests.tiny import chat_vocabulary
from tests.tiny import length_reward
from tests.tiny import make_policy

pytestmark = pytest.mark.one_backend

TEMPLATE = "{% for m in messages %}{{ m.content }}<end_of_turn>{% endfor %}"
CHAT = [{"role": "user", "content": "a fox"}]


@pytest.fixture(params=SETTINGS)
def folder(request, tmp_path):
    policy = make_policy(
        request.param, proto=chat_vocabulary(), **SETTINGS[request.param]
    )
    keras_bond.export.save_safetensors(policy, tmp_path / "base")
    path = tmp_path / "base" / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "chat_template": TEMPLATE}
    path.write_text(json.dumps(config))
    return tmp_path / "base"


def test_the_chat_template_is_kept(folder, tmp_path):
    """Pins: only byte-pair tokenizers kept it."""
    policy = adapt(keras_bond.load_hugging_face(folder))
    assert keras_bond.data.render_chat(CHAT, policy) == "a fox<end_of_turn>"
    keras_bond.export.save_preset(policy, tmp_path / "preset")
    keras_bond.export.save_safetensors(policy, tmp_path / "hf")
    bond = keras_bond.JBond(
        policy, length_reward, max_prompt_length=9, max_completion_length=4
    )
    bond.save(tmp_path / "bond.keras")
    objects = {"length_reward": length_reward}
    for again in (
        keras_hub.models.CausalLM.from_preset(str(tmp_path / "preset")),
        keras_bond.load_hugging_face(tmp_path / "hf"),
        keras.saving.load_model(tmp_path / "bond.keras", objects).policy,
    ):
        tokenizer = again.preprocessor.tokenizer
        assert tokenizer.chat_template == TEMPLATE
        assert same_tokens(tokenizer, policy.preprocessor.tokenizer)


def test_a_folder_without_a_template_has_kerashubs_own_tokenizer(
    folder, monkeypatch
):
    """Ours reads the same; KerasHub never takes it for its own.

    Pins: which of Mistral's two tokenizers KerasHub finds is up to chance.
    """
    module = "keras_hub.src.tokenizers.tokenizer"
    monkeypatch.setattr(f"{module}.find_subclass", None)
    ours = load.load_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    plain = load.load_tokenizer(folder)
    assert type(plain).__module__.startswith("keras_hub.")
    assert same_tokens(ours, plain) and same_tokens(plain, ours)
    found = find_subclass("", keras_hub.models.Tokenizer, plain.backbone_cls)
    assert found is type(plain)
