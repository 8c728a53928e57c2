"""Argument checks of the export functions."""

import os
import warnings

import keras

from keras_bond.export.byte_pair import graph_spec
from keras_bond.files import check_free_space
from keras_bond.packages import check_installed
from keras_bond.rollouts import supported
from keras_bond.training import standardize
from keras_bond.training.whole_files import bytes_of

DTYPES = (
    "float32",
    "bfloat16",
    "float16",
    "mixed_bfloat16",
    "mixed_float16",
)
SPARE_BYTES = 2**26
# Settings that KerasHub's exporter to Transformers assumes.
TRANSFORMERS_SETTINGS = {
    "GemmaBackbone": {
        "use_post_ffw_norm": False,
        "use_post_attention_norm": False,
        "attention_logit_soft_cap": False,
        "final_logit_soft_cap": False,
        "use_sliding_window_attention": False,
    },
    "Gemma3Backbone": {
        "use_post_ffw_norm": True,
        "use_post_attention_norm": True,
        "use_query_key_norm": True,
    },
}
DESCRIPTION = os.path.join("assets.extra", "keras_bond.json")


def check_servable(policy):
    """Raises an error if a policy cannot be served as a TensorFlow graph.

    Raises:
        ValueError: naming what is missing or not supported.
    """
    if policy.preprocessor is None:
        raise ValueError(
            "`policy` must have a preprocessor, whose tokenizer is exported "
            "with it: build it with `preprocessor=...`. Received: a policy "
            "with preprocessor=None"
        )
    supported.check_vocabulary(policy.preprocessor.tokenizer, policy.backbone)


def serves_text(policy, best_of_n):
    """Whether the tokenizer of a policy runs in a TensorFlow graph.

    Warns if not.

    Raises:
        ValueError: if it does not, and `best_of_n` needs it.
    """
    tokenizer = policy.preprocessor.tokenizer
    if getattr(tokenizer, "proto", None) is not None:
        return True
    reason = f"tokenizer of type {type(tokenizer).__name__}"
    if hasattr(tokenizer, "_tokenizer"):
        try:
            graph_spec(tokenizer)
            return True
        except ValueError as error:
            reason = str(error).partition("Received: ")[2]
    if best_of_n is not None:
        raise ValueError(
            "`best_of_n` must be `None` for a tokenizer that does not run in a "
            "TensorFlow graph, because the signature `sample` takes strings. "
            f"Received: best_of_n={best_of_n}, {reason}"
        )
    warnings.warn(
        "The served model takes and returns token ids only, in the signatures "
        "`generate_tokens` and `score_tokens`, because its tokenizer does not "
        "run in a TensorFlow graph: tokenize and detokenize in the client. "
        f"Received: {reason}",
        stacklevel=3,
    )
    return False


def check_transformers(policy):
    """Raises an error if KerasHub's exporter ignores settings of a backbone.

    The exporter writes every `GemmaBackbone` as Gemma 1, and every
    `Gemma3Backbone` with all norms, regardless of its settings.

    Raises:
        ValueError: naming the settings.
    """
    wanted = TRANSFORMERS_SETTINGS.get(type(policy.backbone).__name__, {})
    config = policy.backbone.get_config()
    wrong = {k: config[k] for k, v in wanted.items() if bool(config[k]) != v}
    if wrong:
        raise ValueError(
            "`policy` must have the settings that Transformers uses for its "
            "family, or the exported model would compute something else; "
            "Gemma 2 and similar models cannot be exported. Received: "
            f"{type(policy.backbone).__name__} with {wrong}"
        )


def check_tensorflow():
    """Raises an error if TensorFlow or its text operations are missing.

    Raises:
        ImportError: naming what to install.
    """
    names = ["tensorflow", "tensorflow_text"]
    check_installed("Export to TensorFlow Serving", "export", names)


def check_template(prompt_template):
    """Raises an error if a template has no unique place for the prompt.

    Raises:
        ValueError: if it does not contain `{prompt}` exactly once.
    """
    if prompt_template.count("{prompt}") != 1:
        raise ValueError(
            "`prompt_template` must contain `{prompt}` exactly once. "
            f"Received: prompt_template={prompt_template!r}"
        )


def check_lengths(max_prompt_length, empty_prompt):
    """Raises an error if a length leaves no room for a prompt.

    Args:
        max_prompt_length: int.
        empty_prompt: list of int. Tokens of an empty prompt: start token and
            template.

    Raises:
        ValueError: if there is no room for another token.
    """
    if len(empty_prompt) >= max_prompt_length:
        raise ValueError(
            "`max_prompt_length` must leave room for a prompt in addition to "
            "the start token and `prompt_template`, which have "
            f"{len(empty_prompt)} tokens. "
            f"Received: max_prompt_length={max_prompt_length}"
        )


def check_examples(examples, prompts, max_prompt_length):
    """Raises an error if there is no prompt to check the model with.

    Raises:
        ValueError: if none of the prompts fits.
    """
    if not examples:
        raise ValueError(
            "`prompts` must contain one that fits into `max_prompt_length`. "
            f"Received: {len(prompts)} prompts, max_prompt_length="
            f"{max_prompt_length}"
        )


def reward_modules(reward, best_of_n):
    """Returns the modules that a reward model needs, `None` without a model.

    Raises:
        TypeError: if `reward` is not a Keras model.
        ValueError: if `best_of_n` is not given, or if the model has a class
            that is defined in a script.
    """
    if reward is None:
        return None
    if not isinstance(reward, keras.Model):
        raise TypeError(
            "`reward` must be a `keras.Model` that scores token ids: Python "
            "functions do not run in the server. Received: reward of type "
            f"{type(reward).__name__}"
        )
    if best_of_n is None:
        raise ValueError(
            "`reward` chooses among samples: set `best_of_n`. "
            "Received: a reward, best_of_n=None"
        )
    layers = reward._flatten_layers()
    modules = {type(layer).__module__ for layer in layers}
    if "__main__" in modules:
        raise ValueError(
            "The classes of `reward` must be defined in a module that another "
            "process can import. Received: a class of `__main__`"
        )
    libraries = ("keras.", "keras_hub.")
    return sorted(m for m in modules if not m.startswith(libraries))


def check_not_quantized(policy):
    """Raises an error if a policy has int8 or similar kernels.

    Nothing reads them without their scales, and adapters that are merged into
    them are rounded to their steps: training moves them by less.

    Raises:
        ValueError: naming the kinds of kernels, and how adapters are exported.
    """
    layers = policy._flatten_layers()
    modes = {getattr(layer, "quantization_mode", None) for layer in layers}
    if modes - {None}:
        raise ValueError(
            "`policy` must not be quantized, as merged adapters would be "
            "rounded away. Move them to the weights from before `quantize`: "
            '`policy.backbone.save_lora_weights("adapters.lora.h5")`, then '
            "`enable_lora` and `load_lora_weights` of a backbone that is not "
            "quantized, and export that policy; or `save_adapters` alone. "
            f"Received: layers quantized to {sorted(modes - {None})}"
        )


def resolve_dtype(dtype, policy):
    """Returns the dtype to serve in, by default that of the policy.

    Raises:
        ValueError: if it is unknown, or the weights are quantized.
    """
    check_not_quantized(policy)
    if dtype == "auto":
        dtype = policy.backbone.dtype_policy.name
    if dtype not in DTYPES:
        raise ValueError(
            f'`dtype` must be "auto" or one of {list(DTYPES)}. '
            f"Received: dtype={dtype!r}"
        )
    return dtype


def resolve_stops(stop_token_ids, tokenizer, default):
    """Returns the tokens that end a completion.

    Args:
        stop_token_ids: `"auto"` for the default, or sequence of int.
        tokenizer: a `TextTokenizer`.
        default: tuple of int.

    Raises:
        TypeError: if they are not a list.
        ValueError: if there are none, or one is not in the vocabulary.
    """
    if isinstance(stop_token_ids, str) and stop_token_ids == "auto":
        stop_token_ids = default
    size = tokenizer.tokenizer.vocabulary_size()
    stops = standardize.stop_token_ids_of(stop_token_ids, tokenizer, size)
    if not stops:
        raise ValueError(
            '`stop_token_ids` must be "auto" or at least one token id, or '
            "nothing ends a completion. "
            f"Received: stop_token_ids={stop_token_ids}"
        )
    return sorted(stops)


def resolve_version(path, version):
    """Returns the number of the new version, by default the next one.

    Raises:
        ValueError: if it is not a positive integer.
        FileExistsError: if the version exists.
    """
    if version == "auto":
        names = os.listdir(path) if os.path.isdir(path) else []
        return max((int(n) for n in names if n.isdecimal()), default=0) + 1
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(
            '`version` must be "auto" or a positive integer. '
            f"Received: version={version!r}"
        )
    check_absent("version", os.path.join(path, str(version)))
    return version


def check_absent(name, path):
    """Raises an error if a path exists.

    Raises:
        FileExistsError: if there is a file or folder at `path`.
    """
    if os.path.lexists(path):
        raise FileExistsError(
            f"`{name}` must not exist, as nothing is ever overwritten. "
            f"Received: {path!r}, which exists"
        )


def check_disk(variables, path, *dtypes):
    """Raises an error if the disk is too small for an export.

    Args:
        variables: list of `keras.Variable`.
        path: str.
        *dtypes: str, one for each copy of the weights that is written, or
            `None` for their own.

    Raises:
        OSError: naming the bytes that are needed and free.
    """
    needed = sum(bytes_of(variables, dtype) for dtype in dtypes)
    check_free_space(path, SPARE_BYTES + needed)


def check_exported(path):
    """Raises an error if a folder was not written by an export.

    Raises:
        FileNotFoundError: if the description of the model is missing.
    """
    if not os.path.exists(os.path.join(path, DESCRIPTION)):
        raise FileNotFoundError(
            "`path` must be the folder of a version that "
            "`export_saved_model` wrote, such as `served/my_policy/1`. "
            f"Received: path={path!r}, without {DESCRIPTION}"
        )
