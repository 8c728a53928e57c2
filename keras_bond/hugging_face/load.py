"""Loading of Hugging Face folders as KerasHub models that compute the same."""

import contextlib
import json
import math
import os
import pathlib
import tempfile

import keras

from keras_bond.arguments import is_count
from keras_bond.data import chat_templates
from keras_bond.hugging_face import files
from keras_bond.hugging_face import settings
from keras_bond.packages import check_installed
from keras_bond.rollouts import supported

# Texts that two tokenizers must agree about.
TEXTS = (
    "Hello world, it's 2026: 1234567 + 89 = ?",
    "  two  spaces\tand\ttabs \n\n\nnew lines\r\n  indented ",
    "Ünïcödé ﬁ e\u0301 日本語 한국어 العربية 👩‍💻 …",
    "I'M SHOUTING; we'll see_this CamelCase x+=1; // #$%^&*()",
)
# What KerasHub reads by SentencePiece, and only so.
SENTENCE_PIECE = ("gemma", "gemma2", "gemma3", "gemma3_text")
# What it reads by SentencePiece or byte pairs.
EITHER = ("mistral", "mixtral")
WHOLE = (
    "`folder` must have the settings and weights that KerasHub's converter "
    "reads, whole and of the shapes in config.json"
)


def load_hugging_face(folder, *, dtype=None):
    """Loads a folder of Hugging Face Transformers as a KerasHub model.

    `keras_hub.models.CausalLM.from_preset(folder)` loads such folders, too, but
    ignores a part of their settings: the epsilon of Llama's norms, scaled
    rotary embeddings, sliding windows, how the tokenizer splits text, and which
    tokens start and end it. This function uses the same conversion of weights,
    gives the model what was dropped, and refuses a folder for which KerasHub
    has no equal model. Its byte-pair tokenizer is that of `tokenizer.json`. The
    chat template of the folder is that of the tokenizer.

    The model can be trained, saved and exported like a preset of KerasHub.

    Args:
        folder: str or path. Local folder with `config.json`,
            `*.safetensors`, and `tokenizer.json` or `tokenizer.model`, of a
            Llama 3 (or SmolLM2), Mistral, Mixtral, Qwen 2 or 3, Gemma 1 to 3 or
            GPT-2 model.
        dtype: str, such as `"bfloat16"` or `"mixed_bfloat16"`, or
            `keras.DTypePolicy`. Defaults to that of Keras.

    Returns:
        `keras_hub.models.CausalLM` with a preprocessor.

    Raises:
        TypeError: if `folder` is not a path.
        FileNotFoundError: if `folder`, or a file that is needed, is missing.
        ValueError: if a file cannot be read, if `dtype` is not known, or if
            KerasHub's model would not compute what the folder says, naming the
            settings, weights or tokens that differ.
        ImportError: if safetensors is not installed (extra `hub`).

    Example:

    ```python
    policy = keras_bond.load_hugging_face("SmolLM2-135M-Instruct")
    policy.backbone.enable_lora(8)
    bond = keras_bond.Bond(policy, reward, ...)
    ```
    """
    import keras_hub

    check_installed("`load_hugging_face`", "hub", ["safetensors", "tokenizers"])
    _check_dtype(dtype)
    config = files.read_config(folder)
    folder = pathlib.Path(folder)
    raw = (AttributeError, LookupError, TypeError)
    with files.naming(folder / files.CONFIG, WHOLE, raw):
        config = settings.completed(config)
    settings.check_known(config)
    weights = files.read_weights(folder)
    _check_precision(weights, config)
    tokenizer = load_tokenizer(folder)
    with _as_converters_read_it(folder, config) as readable:
        with files.naming(folder, WHOLE):
            backbone = keras_hub.models.Backbone.from_preset(
                readable, dtype=dtype, **settings.repairs(config)
            )
        settings.check_same(config, backbone)
        check_all_loaded(weights, config, backbone)
        supported.check_vocabulary(tokenizer, backbone)
        with files.naming(folder, WHOLE):
            preprocessor = keras_hub.models.CausalLMPreprocessor.from_preset(
                readable, tokenizer=tokenizer
            )
        return keras_hub.models.CausalLM.from_preset(
            readable, backbone=backbone, preprocessor=preprocessor
        )


def load_tokenizer(folder):
    """Returns the tokenizer of a folder, with its chat template.

    Args:
        folder: str or path. Folder with `config.json`, and `tokenizer.model`
            or `tokenizer.json` and `tokenizer_config.json`.

    Raises:
        FileNotFoundError, ValueError: if a file is missing or cannot be read.
    """
    config, folder = files.read_config(folder), pathlib.Path(folder)
    family = config.get("model_type", "")
    is_there = (folder / files.SENTENCE_PIECE).exists()
    if family in SENTENCE_PIECE or (family in EITHER and is_there):
        return _sentence_piece_tokenizer(folder, config)
    return _byte_pair_tokenizer(folder)


def _sentence_piece_tokenizer(folder, config):
    path = folder / files.SENTENCE_PIECE
    if not path.exists():
        raise FileNotFoundError(
            f"`folder` must have a file {path.name}, because KerasHub reads "
            f"the texts of a {config['model_type']} by SentencePiece: copy it "
            "from the folder of the model that this one was trained from. "
            f"Received: {str(folder)!r}, without {path.name}"
        )
    template = chat_templates.read_chat_template(folder)
    # KerasHub takes seconds to import.
    from keras_bond.hugging_face import sentence_piece

    with files.naming(path, f"{path.name} must be a SentencePiece model"):
        tokenizer = sentence_piece.load(folder, config["model_type"], template)
    _check_ids(tokenizer, folder)
    return tokenizer


def _byte_pair_tokenizer(folder):
    spec = files.read_byte_pairs(folder)
    tokens = files.read_json(folder / files.TOKENS)
    # KerasHub takes seconds to import.
    from keras_bond.hugging_face import byte_pair

    return byte_pair.FolderTokenizer(
        spec,
        start_token=_start_token(spec, tokens),
        end_tokens=_end_tokens(folder, spec, tokens),
        pad_token_id=_ids(spec).get(_token(tokens, "pad_token"), 0),
        chat_template=chat_templates.read_chat_template(folder),
        bos_token=_token(tokens, "bos_token"),
    )


def _check_dtype(dtype):
    """Raises an error if a dtype is not one of float weights.

    Raises:
        ValueError: saying which names are right.
    """
    try:
        policy = keras.dtype_policies.get(dtype)
    except (TypeError, ValueError):
        policy = None
    is_float = "float" in str(getattr(policy, "compute_dtype", None))
    if not is_float or getattr(policy, "quantization_mode", None):
        raise ValueError(
            '`dtype` must be "float32", "bfloat16", "float16", '
            '"mixed_bfloat16", "mixed_float16" or a `keras.DTypePolicy` of '
            "float weights, or `None` for that of Keras. "
            f"Received: dtype={dtype!r}"
        )


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


def _check_ids(tokenizer, folder):
    """Raises an error if a tokenizer does not fit to `tokenizer.json`.

    Raises:
        ValueError: if it has other ids for a text.
    """
    path = folder / files.TOKENIZER
    if not path.exists():
        return
    import tokenizers

    with files.naming(path, files.WRONG_TOKENIZER):
        reference = tokenizers.Tokenizer.from_file(str(path))
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
        return _token(tokens, "bos_token") if adds else None
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
    found = [_token(tokens, "eos_token")]
    names = {i: token for token, i in _ids(spec).items()}
    for file in ("generation_config.json", files.CONFIG):
        if (folder / file).exists():
            ids = files.read_json(folder / file).get("eos_token_id")
            ids = ids if isinstance(ids, list) else [ids]
            found += [names.get(i) for i in ids if is_count(i, 0)]
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


def _token(tokens, name):
    """A token of `tokenizer_config.json`: a str, or a dict with settings."""
    token = tokens.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    if token is not None and not isinstance(token, str):
        raise ValueError(
            f"`{name}` in {files.TOKENS} must be a string, or an object with a "
            f"string as its `content`. Received: {name}={tokens[name]!r}"
        )
    return token
