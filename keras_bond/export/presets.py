"""A trained policy as files of KerasHub and of Hugging Face."""

import os

from keras_bond.export import checks
from keras_bond.files import atomic_folder
from keras_bond.files import temporary_folder
from keras_bond.training.saving import lora_layers


def save_preset(policy, path):
    """Writes a policy as a KerasHub preset, LoRA adapters merged.

    The stock `policy.save_to_preset(path)` in a folder that appears only when
    all of it is written. `keras_hub.models.CausalLM.from_preset(path)` gives
    the same greedy text, from a policy without adapters: what they learned is
    in the kernels. To go on training the adapters, save the trainer.

    Args:
        policy: `keras_hub.models.CausalLM`.
        path: str. Folder that does not exist.

    Raises:
        TypeError: if `policy` is no `CausalLM`.
        FileExistsError: if there is anything at `path`.

    Example:

    ```python
    keras_bond.export.save_preset(bond.policy, "trained")
    policy = keras_hub.models.CausalLM.from_preset("trained")
    ```
    """
    path = os.fspath(path)
    checks.check_policy(policy)
    checks.check_absent("path", path)
    with atomic_folder(path) as folder:
        policy.save_to_preset(folder)


def save_safetensors(policy, path):
    """Writes a policy for Hugging Face Transformers, LoRA adapters merged.

    KerasHub's `policy.export_to_transformers(path)`, which on a policy with
    adapters would write the weights from before the training; in a folder that
    appears only when all of it is written.

    Args:
        policy: `keras_hub.models.CausalLM` of a family that KerasHub exports:
            Gemma, Gemma 3, Llama 3, Mistral and others. Not Gemma 2.
        path: str. Folder that does not exist.

    Raises:
        TypeError: if `policy` is no `CausalLM`.
        ValueError: if Transformers would compute something else, or KerasHub
            does not export this family.
        FileExistsError: if there is anything at `path`.

    Example:

    ```python
    keras_bond.export.save_safetensors(bond.policy, "trained_hf")
    model = transformers.AutoModelForCausalLM.from_pretrained("trained_hf")
    ```
    """
    path = os.fspath(path)
    checks.check_policy(policy)
    checks.check_transformers(policy)
    checks.check_absent("path", path)
    with temporary_folder(path) as folder, atomic_folder(path) as finished:
        if lora_layers(policy):
            policy = _merged(policy, folder)
        policy.export_to_transformers(finished)


def _merged(policy, folder):
    """The same policy without adapters; a preset merges them."""
    import keras_hub

    parts = {}
    policy.backbone.save_to_preset(folder)
    if policy.preprocessor is None:
        parts["preprocessor"] = None
    else:
        policy.preprocessor.save_to_preset(folder)
    dtype = policy.backbone.dtype_policy.name
    return keras_hub.models.CausalLM.from_preset(folder, dtype=dtype, **parts)
