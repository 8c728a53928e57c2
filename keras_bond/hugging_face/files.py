"""Files of a Hugging Face folder: reading, and checks of what they hold."""

import contextlib
import json
import os
import pathlib
import struct

from keras_bond.arguments import is_count
from keras_bond.arguments import is_number

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENS = "tokenizer_config.json"
SENTENCE_PIECE = "tokenizer.model"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
WRONG_TOKENIZER = f"{TOKENIZER} must be of the library `tokenizers`"
# Buffers that old versions of Transformers stored with the weights.
BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
# Entries of config.json that must be of one kind, or null.
COUNTS = (
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "moe_intermediate_size",
    "n_embd",
    "n_head",
    "n_inner",
    "n_layer",
    "n_positions",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "vocab_size",
)
NUMBERS = (
    "layer_norm_epsilon",
    "query_pre_attn_scalar",
    "rms_norm_eps",
    "rope_local_base_freq",
    "rope_theta",
)
OBJECTS = (
    "quantization_config",
    "rope_parameters",
    "rope_scaling",
    "text_config",
    "vision_config",
)
KINDS = {
    "a positive integer": (COUNTS, lambda x: is_count(x, 1)),
    "a number": (NUMBERS, is_number),
    "an object": (OBJECTS, lambda x: isinstance(x, dict)),
    "a list": (("layer_types",), lambda x: isinstance(x, list)),
    "a string": (("model_type",), lambda x: isinstance(x, str)),
}


def read_config(folder):
    """Returns the content of `config.json`.

    Args:
        folder: str or path.

    Raises:
        TypeError, FileNotFoundError: if there is no such folder or file.
        ValueError: if the file cannot be read, or is of a KerasHub preset.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(
            "`folder` must be the path of a local folder, a str. Received: "
            f"folder={folder!r} of type {type(folder).__name__}"
        )
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            "`folder` must be a local folder of Hugging Face Transformers: "
            "download a model with `huggingface_hub.snapshot_download`. "
            f"Received: folder={str(folder)!r}"
        )
    path = pathlib.Path(folder) / CONFIG
    config = read_json(path)
    if "registered_name" in config:
        raise ValueError(
            "`folder` must be of Hugging Face Transformers: load a preset of "
            "KerasHub with `keras_hub.models.CausalLM.from_preset(folder)`. "
            f"Received: folder={str(folder)!r}, with a preset"
        )
    _check_kinds(config, path)
    _check_kinds(config.get("text_config") or {}, path)
    return config


def _check_kinds(config, path):
    for kind, (names, fits) in KINDS.items():
        for name in names:
            value = config.get(name)
            if value is not None and not fits(value):
                raise ValueError(
                    f"`{name}` in {CONFIG} must be {kind}. "
                    f"Received: {str(path)!r}, {name}={value!r}"
                )


def read_json(path):
    """Returns the content of a file that holds an object of JSON.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"`folder` must have a file {path.name}, as "
            "`model.save_pretrained(folder)` and "
            "`tokenizer.save_pretrained(folder)` of a fast tokenizer write it. "
            f"Received: {str(path)!r}, which does not exist"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path.name} must be JSON in UTF-8. Received: {str(path)!r}, "
            f"{error}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path.name} must hold an object of JSON, {{...}}. Received: "
            f"{str(path)!r}, which holds {str(content)[:60]}"
        )
    return content


def read_weights(folder):
    """Maps the names of the weights in a folder to dtype and shape.

    Args:
        folder: path.

    Raises:
        FileNotFoundError: if a file of weights is missing.
        ValueError: if one of them, or their index, cannot be read.
    """
    names = _names_of_weights(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            "`folder` must have all of its weights as safetensors, as "
            "`model.save_pretrained(folder)` writes them. "
            f"Received: {str(folder)!r}, without {missing}"
        )
    found = {}
    for name in names:
        found |= _read_header(folder / name)
    return {k: v for k, v in found.items() if not k.endswith(BUFFERS)}


def _names_of_weights(folder):
    if not (folder / INDEX).exists():
        return [WEIGHTS]
    files = read_json(folder / INDEX).get("weight_map")
    is_map = isinstance(files, dict) and len(files) > 0
    if not is_map or not all(isinstance(x, str) for x in files.values()):
        raise ValueError(
            f"{INDEX} must have a `weight_map` from the names of the weights "
            f"to those of files. Received: {str(folder / INDEX)!r}, "
            f"weight_map={str(files)[:60]}"
        )
    return sorted(set(files.values()))


def _read_header(path):
    """Names, dtypes and shapes of the tensors in a file of safetensors."""
    with naming(path, f"{path.name} must be a whole file of safetensors"):
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("the file is shorter than its header says")
            header = json.loads(file.read(length))
        return {
            name: {"dtype": tensor["dtype"], "shape": tensor["shape"]}
            for name, tensor in header.items()
            if name != "__metadata__"
        }


def read_byte_pairs(folder):
    """Returns the content of a `tokenizer.json` with byte pairs.

    Args:
        folder: path.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or is of another kind.
    """
    import tokenizers

    path = folder / TOKENIZER
    spec = read_json(path)
    with naming(path, WRONG_TOKENIZER):
        model = tokenizers.Tokenizer.from_str(json.dumps(spec)).model
    if not isinstance(model, tokenizers.models.BPE) or model.byte_fallback:
        name = type(model).__name__
        raise ValueError(
            f"{TOKENIZER} must hold byte pairs, as in Llama 3 and Qwen: "
            "KerasHub's model of this family has no tokenizer of another "
            f"kind, such as the SentencePiece of Llama 2. Received: "
            f"{str(path)!r}, with a model {name}"
            f"{' that falls back to bytes' * (name == 'BPE')}"
        )
    return spec


@contextlib.contextmanager
def naming(path, rule, errors=Exception):
    """Returns a context whose errors say what a file or folder must be.

    Args:
        path: path.
        rule: str. The beginning of the message.
        errors: class or tuple of classes of errors to catch.
    """
    try:
        yield
    except errors as error:
        raise ValueError(
            f"{rule}. Received: {str(path)!r}, {type(error).__name__}: {error}"
        ) from error
