"""Loading of Hugging Face folders as KerasHub models that compute the same."""

import contextlib
import json
import math
import os
import pathlib
import struct
import tempfile

from keras_bond.data import chat_templates
from keras_bond.hugging_face import settings
from keras_bond.rollouts import supported

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Texts that two tokenizers must agree about.
TEXTS = (
    "Hello world, it's 2026: 1234567 + 89 = ?",
    "  two  spaces\tand\ttabs \n\n\nnew lines\r\n  indented ",
    "Ünïcödé ﬁ e\u0301 日本語 한국어 العربية 👩‍💻 …",
    "I'M SHOUTING; we'll see_this CamelCase x+=1; // #$%^&*()",
)
# Buffers that old versions of Transformers stored with the weights.
BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


def load_hugging_face(folder, *, dtype=None):
    """Loads a folder of Hugging Face Transformers as a KerasHub model.

    `keras_hub.models.CausalLM.from_preset(folder)` loads such folders, too, but
    ignores a part of their settings: the epsilon of Llama's norms, scaled
    rotary embeddings, sliding windows, how the tokenizer splits text, and which
    tokens start and end it. This function uses the same conversion of weights,
    gives the model what was dropped, and refuses a folder for which KerasHub
    has no equal model. Its byte-pair tokenizer is that of `tokenizer.json`.

    The model can be trained, saved and exported like a preset of KerasHub.

    Args:
        folder: str or path. Local folder with `config.json`,
            `*.safetensors`, and `tokenizer.json` or `tokenizer.model`, of a
            Llama 3 (or SmolLM2), Mistral, Mixtral, Qwen 2 or 3, Gemma 1 to 3 or
            GPT-2 model.
        dtype: str or `keras.DTypePolicy`. Defaults to that of Keras.

    Returns:
        `keras_hub.models.CausalLM` with a preprocessor.

    Raises:
        FileNotFoundError: if `folder`, or a file that is needed, is missing.
        ValueError: if KerasHub's model would not compute what the folder says,
            naming the settings, weights or tokens that differ.

    Example:

    ```python
    policy = keras_bond.load_hugging_face("SmolLM2-135M-Instruct")
    policy.backbone.enable_lora(8)
    bond = keras_bond.Bond(policy, reward, ...)
    ```
    """
    import keras_hub

    folder = pathlib.Path(folder)
    config = _config(folder)
    with _naming(folder, (AttributeError, LookupError, TypeError)):
        config = settings.completed(config)
    settings.check_known(config)
    weights = read_weights(folder)
    _check_precision(weights, config)
    with _as_converters_read_it(folder, config) as readable:
        with _naming(folder):
            backbone = keras_hub.models.Backbone.from_preset(
                readable, dtype=dtype, **settings.repairs(config)
            )
        settings.check_same(config, backbone)
        check_all_loaded(weights, config, backbone)
        tokenizer = load_tokenizer(folder)
        preprocessor = keras_hub.models.CausalLMPreprocessor.from_preset(
            readable,
            **({} if tokenizer is None else {"tokenizer": tokenizer}),
        )
        _check_vocabulary(preprocessor.tokenizer, folder, backbone)
        if tokenizer is None:
            preprocessor.tokenizer.chat_template = (
                chat_templates.read_chat_template(folder)
            )
        return keras_hub.models.CausalLM.from_preset(
            readable, backbone=backbone, preprocessor=preprocessor
        )


def load_tokenizer(folder):
    """Returns the byte-pair tokenizer of a folder, `None` if it has no such.

    Args:
        folder: str or path. Folder with `tokenizer.json` and
            `tokenizer_config.json`.
    """
    folder = pathlib.Path(folder)
    family = read_json(folder / "config.json").get("model_type", "")
    # KerasHub's preprocessor of Gemma wants SentencePiece.
    if (folder / "tokenizer.model").exists() or family.startswith("gemma"):
        return None
    spec = read_json(folder / "tokenizer.json")
    if spec["model"].get("byte_fallback"):
        return None
    # KerasHub takes seconds to import.
    from keras_bond.hugging_face import byte_pair

    tokens = read_json(folder / "tokenizer_config.json")
    return byte_pair.FolderTokenizer(
        spec,
        start_token=_start_token(spec, tokens),
        end_tokens=_end_tokens(folder, spec, tokens),
        pad_token_id=_ids(spec).get(_content(tokens.get("pad_token")), 0),
        chat_template=chat_templates.read_chat_template(folder),
        bos_token=_content(tokens.get("bos_token")),
    )


def _config(folder):
    if not folder.is_dir():
        raise FileNotFoundError(
            "`folder` must be a local folder of Hugging Face Transformers: "
            "download a model with `huggingface_hub.snapshot_download`. "
            f"Received: folder={str(folder)!r}"
        )
    config = read_json(folder / "config.json")
    if "registered_name" in config:
        raise ValueError(
            "`folder` must be of Hugging Face Transformers: load a preset of "
            "KerasHub with `keras_hub.models.CausalLM.from_preset(folder)`. "
            f"Received: folder={str(folder)!r}, with a preset"
        )
    return config


def read_json(path):
    """The content of a file of JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"`folder` must have a file {path.name}, as "
            "`model.save_pretrained(folder)` and "
            "`tokenizer.save_pretrained(folder)` of a fast tokenizer write it. "
            f"Received: {str(path)!r}, which does not exist"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{path.name} must be JSON in UTF-8. Received: {str(path)!r}, "
            f"{error}"
        ) from error


def read_weights(folder):
    """Maps the names of the weights in a folder to dtype and shape."""
    if (folder / INDEX).exists():
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    else:
        names = [WEIGHTS]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            "`folder` must have all of its weights as safetensors, as "
            "`model.save_pretrained(folder)` writes them. "
            f"Received: {str(folder)!r}, without {missing}"
        )
    found = {}
    for name in names:
        with _naming(folder / name), open(folder / name, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found |= header
    return {k: v for k, v in found.items() if not k.endswith(BUFFERS)}


@contextlib.contextmanager
def _as_converters_read_it(folder, config):
    """Yields a folder of links to the files, with a complete `config.json`."""
    with tempfile.TemporaryDirectory() as readable:
        for path in folder.iterdir():
            if path.name != "config.json":
                os.symlink(path.absolute(), os.path.join(readable, path.name))
        with open(os.path.join(readable, "config.json"), "w") as file:
            json.dump(config, file)
        yield readable


@contextlib.contextmanager
def _naming(path, errors=Exception):
    """Returns a context whose errors name a folder or file."""
    try:
        yield
    except errors as error:
        raise ValueError(
            "`folder` must have the settings and weights that KerasHub's "
            "converter reads, whole and of the shapes in config.json. "
            f"Received: {str(path)!r}, {type(error).__name__}: {error}"
        ) from error


def _check_precision(weights, config):
    """Raises an error if KerasHub's converter would round the weights.

    Raises:
        ValueError: for Mistral in float32.
    """
    dtypes = {weight["dtype"] for weight in weights.values()}
    if config["model_type"] == "mistral" and "F32" in dtypes:
        raise ValueError(
            "`folder` must hold the weights of a Mistral model in half "
            "precision, because KerasHub converts them to float16: "
            '`model.to("bfloat16").save_pretrained(folder)`. '
            f"Received: {sorted(dtypes)}"
        )


def check_all_loaded(weights, config, backbone):
    """Raises an error if the folder has weights that the backbone has not.

    Raises:
        ValueError: naming the numbers of weights.
    """
    if "vision_config" in config:
        return
    if config["tie_word_embeddings"]:
        weights = {k: v for k, v in weights.items() if "lm_head" not in k}
    expected = sum(math.prod(x["shape"]) for x in weights.values())
    found = backbone.count_params()
    if expected != found:
        raise ValueError(
            "KerasHub's model must have all weights of the folder, such as "
            "biases, and no others. Received: "
            f"{expected:,} weights in {len(weights)} tensors in the folder, "
            f"{found:,} in {type(backbone).__name__}"
        )


def _check_vocabulary(tokenizer, folder, backbone):
    """Raises an error if a tokenizer does not fit its model or folder.

    Raises:
        ValueError: if it has ids that the embedding lacks, or other ids for a
            text than `tokenizer.json`.
    """
    supported.check_vocabulary(tokenizer, backbone)
    if not (folder / "tokenizer.json").exists():
        return
    import tokenizers

    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        expected = reference.encode(text, add_special_tokens=False).ids
        found = [int(i) for i in tokenizer(text)]
        if expected != found:
            raise ValueError(
                "The tokenizer of KerasHub must give the ids of "
                "tokenizer.json: delete the file that is not of this model, "
                "tokenizer.model or tokenizer.json. Received: "
                f"{found} for {text!r}, {expected} in tokenizer.json"
            )


def _start_token(spec, tokens):
    """The token that Transformers puts before a text, `None` for none."""
    adds = tokens.get("add_bos_token")
    if adds is not None:
        return _content(tokens.get("bos_token")) if adds else None
    processor = spec.get("post_processor") or {}
    steps = processor.get("processors", [processor])
    for step in steps:
        for piece in step.get("single", []):
            if "SpecialToken" in piece:
                return piece["SpecialToken"]["id"]
            break
    return None


def _end_tokens(folder, spec, tokens):
    """The tokens that end a text, the tokenizer's first."""
    found = [_content(tokens.get("eos_token"))]
    names = {i: token for token, i in _ids(spec).items()}
    for file in ("generation_config.json", "config.json"):
        if (folder / file).exists():
            ids = read_json(folder / file).get("eos_token_id")
            ids = ids if isinstance(ids, list) else [ids]
            found += [names.get(i) for i in ids]
    found = list(dict.fromkeys(token for token in found if token))
    if not found:
        raise ValueError(
            "`folder` must have a token that ends a text: `eos_token` in "
            "tokenizer_config.json, or `eos_token_id` in config.json, of the "
            f"vocabulary. Received: {str(folder)!r}, without one"
        )
    return found


def _ids(spec):
    """Maps all tokens to their ids."""
    added = {x["content"]: x["id"] for x in spec.get("added_tokens", [])}
    return {**spec["model"]["vocab"], **added}


def _content(token):
    """A token of `tokenizer_config.json`: a str, or a dict with settings."""
    return token["content"] if isinstance(token, dict) else token
