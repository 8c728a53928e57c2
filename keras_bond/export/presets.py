"""Export to KerasHub presets and Hugging Face Transformers."""

import contextlib
import os

from keras_bond.export import checks
from keras_bond.files import atomic_folder
from keras_bond.files import temporary_folder
from keras_bond.hugging_face import write
from keras_bond.packages import check_installed
from keras_bond.rollouts import supported
from keras_bond.training import round_trip
from keras_bond.training.whole_files import lora_layers


def save_preset(policy, path):
    """Saves a policy as a KerasHub preset with merged LoRA adapters.

    This is `policy.save_to_preset(path)` as an atomic write: the folder exists
    only when it is complete. `from_preset(path)` of the policy's class
    loads a policy that generates the same greedy text but has no adapters,
    because they are merged into the kernels. To continue training the adapters,
    save the trainer instead.

    Args:
        policy: `keras_hub.models.CausalLM`.
        path: str. Folder to create; it must not exist.

    Raises:
        TypeError: if `policy` is not a KerasHub causal language model.
        ValueError: if adapters would be merged into quantized kernels.
        FileExistsError: if there is a file or folder at `path`.
        OSError: if the disk is too small.

    Example:

    ```python
    keras_bond.export.save_preset(bond.policy, "trained")
    policy = keras_hub.models.Gemma3CausalLM.from_preset("trained")
    ```
    """
    path = os.fspath(path)
    supported.check_causal_lm(policy)
    if lora_layers(policy):
        checks.check_not_quantized(policy)
    checks.check_absent("path", path)
    checks.check_disk(policy.variables, path, None)
    round_trip.check(policy)
    with round_trip.complete(policy), atomic_folder(path) as folder:
        policy.save_to_preset(folder)


def save_safetensors(policy, path):
    """Saves a policy for Hugging Face Transformers with merged LoRA adapters.

    This is KerasHub's `policy.export_to_transformers(path)` as an atomic write:
    the folder exists only when it is complete. Adapters are merged first,
    because KerasHub's method ignores them and would write the kernels from
    before the training.

    Args:
        policy: `keras_hub.models.CausalLM` of a family that KerasHub exports,
            such as Gemma, Gemma 3, Llama 3 and Mistral, but not Gemma 2.
        path: str. Folder to create; it must not exist.

    Raises:
        TypeError: if `policy` is not a KerasHub causal language model.
        ValueError: if the exported model would compute something else in
            Transformers, if KerasHub does not export this family, or if the
            policy is quantized.
        FileExistsError: if there is a file or folder at `path`.
        OSError: if the disk is too small.
        ImportError: if safetensors is not installed (extra `hub`).

    Example:

    ```python
    keras_bond.export.save_safetensors(bond.policy, "trained_hf")
    model = transformers.AutoModelForCausalLM.from_pretrained("trained_hf")
    ```
    """
    path = os.fspath(path)
    supported.check_causal_lm(policy)
    check_installed("`save_safetensors`", "hub", ["safetensors"])
    checks.check_not_quantized(policy)
    checks.check_transformers(policy)
    checks.check_absent("path", path)
    has_adapters = bool(lora_layers(policy))
    copies = (None, None) if has_adapters else (None,)
    checks.check_disk(policy.variables, path, *copies)
    round_trip.check(policy)
    tokenizer = getattr(policy.preprocessor, "tokenizer", None)
    with temporary_folder(path) as folder, atomic_folder(path) as finished:
        if has_adapters:
            policy = _merged(policy, folder)
        with _without_folder_tokenizer(policy):
            policy.export_to_transformers(finished)
        write.finish(finished, policy.backbone, tokenizer)


def _merged(policy, folder):
    """Returns a copy of the policy with merged adapters, through a preset."""
    parts = {}
    with round_trip.complete(policy):
        policy.backbone.save_to_preset(folder)
        if policy.preprocessor is None:
            parts["preprocessor"] = None
        else:
            policy.preprocessor.save_to_preset(folder)
    dtype = policy.backbone.dtype_policy.name
    # `CausalLM.from_preset` confuses Gemma 4 with its assistant by chance: it
    # takes the first class of a set that has the backbone.
    return type(policy).from_preset(folder, dtype=dtype, **parts)


@contextlib.contextmanager
def _without_folder_tokenizer(policy):
    """Returns a context in which the policy has no `FolderTokenizer`.

    KerasHub writes only its own classes, so such a policy has no preprocessor
    in this context.
    """
    preprocessor = policy.preprocessor
    if hasattr(getattr(preprocessor, "tokenizer", None), "spec"):
        policy.preprocessor = None
    try:
        yield
    finally:
        policy.preprocessor = preprocessor
