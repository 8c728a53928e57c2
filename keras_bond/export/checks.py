"""What cannot be exported, refused before any heavy work."""

import importlib.util
import math
import os
import shutil

import keras

DTYPES = (
    "float32",
    "bfloat16",
    "float16",
    "mixed_bfloat16",
    "mixed_float16",
)
SPARE_BYTES = 2**26
# What KerasHub's exporter to Transformers takes for granted.
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


def check_policy(policy):
    """Refuses what is no KerasHub language model.

    Raises:
        TypeError: if `policy` is no `keras_hub.models.CausalLM`.
    """
    import keras_hub

    if not isinstance(policy, keras_hub.models.CausalLM):
        raise TypeError(
            "`policy` must be a `keras_hub.models.CausalLM`; of a trainer, "
            "pass `bond.policy`. Received: policy of type "
            f"{type(policy).__name__}"
        )


def check_servable(policy):
    """Refuses policies whose text cannot be handled inside the graph.

    Raises:
        ValueError: naming what is missing or too much.
    """
    backbone = policy.backbone
    if policy.preprocessor is None:
        raise ValueError(
            "`policy` must have a preprocessor, whose tokenizer is exported "
            "with it: build it with `preprocessor=...`. Received: a policy "
            "with preprocessor=None"
        )
    tokenizer = policy.preprocessor.tokenizer
    if getattr(tokenizer, "proto", None) is None:
        raise ValueError(
            "`policy` must have a SentencePiece tokenizer with its `proto`, "
            "as Gemma has: others do not run inside the graph. Received: "
            f"tokenizer of type {type(tokenizer).__name__}"
        )
    if tokenizer.vocabulary_size() > backbone.vocabulary_size:
        raise ValueError(
            "The vocabulary of the tokenizer must not be larger than the "
            "embedding of the backbone: set `vocabulary_size` of the backbone "
            f"to that of the tokenizer. Received: {tokenizer.vocabulary_size()}"
            f" tokens, an embedding of {backbone.vocabulary_size}"
        )
    if set(backbone.input) != {"token_ids", "padding_mask"}:
        raise ValueError(
            "`policy` must take text only, without a vision encoder: load a "
            "text-only preset. Received: a backbone with inputs "
            f"{sorted(backbone.input)}"
        )


def check_transformers(policy):
    """Refuses backbones of which KerasHub's exporter leaves parts out.

    It writes a `GemmaBackbone` as Gemma 1 and a `Gemma3Backbone` with all of
    its norms, whatever they are.

    Raises:
        ValueError: naming the parts.
    """
    wanted = TRANSFORMERS_SETTINGS.get(type(policy.backbone).__name__, {})
    config = policy.backbone.get_config()
    wrong = {k: config[k] for k, v in wanted.items() if bool(config[k]) != v}
    if wrong:
        raise ValueError(
            "`policy` must be built as Transformers builds its family, or it "
            "would compute something else there; Gemma 2 and its relatives "
            f"cannot be exported. Received: {type(policy.backbone).__name__} "
            f"with {wrong}"
        )


def check_tensorflow():
    """Refuses to go on without TensorFlow and its text operations.

    Raises:
        ImportError: naming what to install.
    """
    wanted = ("tensorflow", "tensorflow_text")
    missing = [name for name in wanted if not importlib.util.find_spec(name)]
    if missing:
        raise ImportError(
            "Export to TensorFlow Serving needs TensorFlow and its text "
            'operations, on every backend: `pip install "keras-bond[export]"`. '
            f"Received: {missing} not installed"
        )


def check_template(prompt_template):
    """Refuses a template that does not say where the prompt goes.

    Raises:
        ValueError: unless it holds `{prompt}` once.
    """
    if prompt_template.count("{prompt}") != 1:
        raise ValueError(
            "`prompt_template` must hold `{prompt}` once. "
            f"Received: prompt_template={prompt_template!r}"
        )


def check_lengths(max_prompt_length, empty_prompt):
    """Refuses a length that leaves no room for a prompt.

    Args:
        max_prompt_length: int.
        empty_prompt: list of int. Start token and template by themselves.

    Raises:
        ValueError: if nothing fits behind them.
    """
    if len(empty_prompt) >= max_prompt_length:
        raise ValueError(
            "`max_prompt_length` must leave room for a prompt beside the "
            f"start token and `prompt_template`, {len(empty_prompt)} tokens. "
            f"Received: max_prompt_length={max_prompt_length}"
        )


def check_examples(examples, prompts, max_prompt_length):
    """Refuses to go on with no prompt to check the model with.

    Raises:
        ValueError: if none of the prompts fits.
    """
    if not examples:
        raise ValueError(
            "`prompts` must hold one that fits into `max_prompt_length`. "
            f"Received: {len(prompts)} prompts, max_prompt_length="
            f"{max_prompt_length}"
        )


def reward_modules(reward, best_of_n):
    """Returns the modules that a reward model needs, `None` without one.

    Raises:
        TypeError: if `reward` is no Keras model.
        ValueError: if it comes without `best_of_n`, or lives in a script.
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
            "The classes of `reward` must live in a module, where another "
            "process can import them. Received: a class of `__main__`"
        )
    libraries = ("keras.", "keras_hub.")
    return sorted(m for m in modules if not m.startswith(libraries))


def resolve_dtype(dtype, policy):
    """Returns the dtype to serve in, by default that of the policy.

    Raises:
        ValueError: if it is unknown, or the weights are quantised.
    """
    layers = policy._flatten_layers()
    modes = {getattr(layer, "quantization_mode", None) for layer in layers}
    if modes - {None}:
        raise ValueError(
            "`policy` must not be quantised: export it before `quantize`. "
            f"Received: layers quantised to {sorted(modes - {None})}"
        )
    if dtype == "auto":
        dtype = policy.backbone.dtype_policy.name
    if dtype not in DTYPES:
        raise ValueError(
            f'`dtype` must be "auto" or one of {list(DTYPES)}. '
            f"Received: dtype={dtype!r}"
        )
    return dtype


def resolve_stops(stop_token_ids, codec):
    """Returns the tokens that end a completion, by default the policy's.

    Raises:
        ValueError: if there is none, or one that the vocabulary lacks.
    """
    if stop_token_ids == "auto":
        stop_token_ids = codec.stop_token_ids()
    stops = sorted(map(int, stop_token_ids))
    size = codec.tokenizer.vocabulary_size()
    if not stops or not all(0 <= stop < size for stop in stops):
        raise ValueError(
            '`stop_token_ids` must be "auto" or at least one of the '
            f"{size} token ids. Received: stop_token_ids={stop_token_ids}"
        )
    return stops


def resolve_version(path, version):
    """Returns the number of the new version, by default the next one.

    Raises:
        ValueError: if it is no positive number.
        FileExistsError: if there is such a version already.
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
    """Refuses to write over what exists.

    Raises:
        FileExistsError: if there is anything at `path`.
    """
    if os.path.lexists(path):
        raise FileExistsError(
            f"`{name}` must be a new one: nothing is ever overwritten. "
            f"Received: {path!r}, which exists"
        )


def check_disk(variables, path, dtype):
    """Refuses to begin what the disk cannot hold.

    Twice the weights are written: once for the process that traces, and once
    for the server.

    Raises:
        OSError: with the bytes that are needed and free.
    """
    served = keras.DTypePolicy(dtype).variable_dtype
    needed = SPARE_BYTES + sum(
        math.prod(variable.shape) * (_bytes(variable.dtype) + _bytes(served))
        for variable in variables
    )
    while not os.path.exists(path):
        path = os.path.dirname(path)
    free = shutil.disk_usage(path).free
    if free < needed:
        raise OSError(
            "`path` must have room for the weights twice over. Received: "
            f"{needed:,} bytes needed, {free:,} free at {path!r}"
        )


def _bytes(dtype):
    return 2 if dtype in ("bfloat16", "float16") else 4


def check_exported(path):
    """Refuses a folder that no export wrote.

    Raises:
        FileNotFoundError: if its description is missing.
    """
    if not os.path.exists(os.path.join(path, DESCRIPTION)):
        raise FileNotFoundError(
            "`path` must be the folder of a version that "
            "`export_saved_model` wrote, such as `served/my_policy/1`. "
            f"Received: path={path!r}, without {DESCRIPTION}"
        )
