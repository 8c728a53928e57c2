"""What KerasHub leaves out of the Hugging Face folders that it writes."""

import json
import pathlib

from keras_bond.hugging_face import files
from keras_bond.hugging_face import load
from keras_bond.hugging_face import settings

# Classes of Transformers, which other engines ask config.json for.
CLASSES = {
    "gemma": "GemmaForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}


def finish(folder, backbone, tokenizer):
    """Completes a folder that KerasHub wrote, and checks it.

    Args:
        folder: str.
        backbone: the `keras_hub.models.Backbone` in it.
        tokenizer: that of the policy, or `None`. KerasHub writes neither a
            `FolderTokenizer` nor the chat template of any other.

    Raises:
        ValueError: if Transformers would compute something else.
    """
    folder = pathlib.Path(folder)
    config = files.read_config(folder)
    if hasattr(tokenizer, "spec"):
        config |= _write_tokenizer(folder, tokenizer)
    elif isinstance(getattr(tokenizer, "chat_template", None), str):
        tokens = files.read_json(folder / files.TOKENS)
        tokens["chat_template"] = tokenizer.chat_template
        _write(folder / files.TOKENS, tokens)
    if config["model_type"] in CLASSES:
        config["architectures"] = [CLASSES[config["model_type"]]]
        if "hidden_size" in config:
            config.setdefault("rms_norm_eps", backbone.layer_norm_epsilon)
    _write(folder / "config.json", config)
    if config["model_type"] in settings.FAMILIES:
        complete = settings.completed(config)
        settings.check_known(complete)
        settings.check_same(complete, backbone)
        load.check_all_loaded(files.read_weights(folder), complete, backbone)


def _write_tokenizer(folder, tokenizer):
    """Writes a tokenizer; returns what config.json says of it."""
    start, ends = tokenizer.start_token, tokenizer.end_tokens
    pads = [x for x, i in tokenizer.vocabulary.items()]
    ids = tokenizer.end_token_ids
    spec = {**tokenizer.spec, "post_processor": _starting(tokenizer)}
    _write(folder / "tokenizer.json", spec)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.bos_token or start,
        "eos_token": ends[0],
        "pad_token": pads[tokenizer.pad_token_id],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
    }
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    _write(folder / "tokenizer_config.json", config)
    tokens = {
        "bos_token_id": tokenizer.start_token_id,
        "eos_token_id": ids[0] if len(ids) == 1 else ids,
        "pad_token_id": tokenizer.pad_token_id,
    }
    _write(folder / "generation_config.json", tokens)
    return tokens


def _starting(tokenizer):
    """The step of `tokenizer.json` that adds the start token."""
    if tokenizer.start_token is None:
        return None
    start = {"SpecialToken": {"id": tokenizer.start_token, "type_id": 0}}
    texts = [{"Sequence": {"id": x, "type_id": i}} for i, x in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [start, texts[0]],
        "pair": [start, *texts],
        "special_tokens": {
            tokenizer.start_token: {
                "id": tokenizer.start_token,
                "ids": [tokenizer.start_token_id],
                "tokens": [tokenizer.start_token],
            }
        },
    }


def _write(path, content):
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
