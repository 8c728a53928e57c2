"""Export of LoRA adapters in the format of Hugging Face PEFT."""

import json
import os
import re

import numpy as np
from keras import ops

from keras_bond.export import checks
from keras_bond.files import atomic_folder
from keras_bond.packages import check_installed
from keras_bond.rollouts import supported
from keras_bond.training.whole_files import lora_layers

FAMILIES = (
    "GemmaBackbone",
    "Gemma3Backbone",
    "Llama3Backbone",
    "MistralBackbone",
    "MixtralBackbone",
    "QwenBackbone",
    "Qwen3Backbone",
)
BLOCK = re.compile(r"(?:transformer_layer|decoder_block)_(\d+)")
# Names of a layer in KerasHub and in Transformers.
MODULES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_output": "self_attn.o_proj",
    "feedforward_gate_dense": "mlp.gate_proj",
    "feedforward_intermediate_dense": "mlp.up_proj",
    "feedforward_output_dense": "mlp.down_proj",
    "ffw_gating": "mlp.gate_proj",
    "ffw_gating_2": "mlp.up_proj",
    "ffw_linear": "mlp.down_proj",
}


def save_adapters(policy, path, *, base_model=None):
    """Saves the LoRA adapters of a policy alone, in the format of PEFT.

    The folder holds `adapter_config.json` and `adapter_model.safetensors`,
    which PEFT, vLLM and others put on the untouched base model. They take a few
    megabytes where `save_safetensors` writes the whole model.

    KerasHub's adapter of an attention kernel has its own first factor for each
    head, so PEFT's rank is the rank times the number of heads. All adapters are
    padded with zeros to the largest rank, because not every engine reads
    adapters of different ranks.

    Args:
        policy: `keras_hub.models.CausalLM` with adapters, as
            `policy.backbone.enable_lora(rank)` makes them, of Gemma 1 and 3,
            Llama 3, Mistral, Mixtral and Qwen 2 and 3.
        path: str. Folder to create; it must not exist.
        base_model: str or path. Folder or name of the adapters' base model in
            Transformers, which PEFT's `AutoPeftModelForCausalLM` loads.

    Raises:
        TypeError: if `policy` is not a KerasHub causal language model.
        ValueError: if it has no adapters, trains other weights too, or is of
            another family.
        FileExistsError: if there is a file or folder at `path`.
        ImportError: if safetensors is not installed (extra `hub`).
        OSError: if the disk is too small.

    Example:

    ```python
    keras_bond.export.save_adapters(bond.policy, "trained_adapters")
    base = transformers.AutoModelForCausalLM.from_pretrained("base")
    model = peft.PeftModel.from_pretrained(base, "trained_adapters")
    ```
    """
    path = os.fspath(path)
    supported.check_causal_lm(policy)
    check_installed("`save_adapters`", "hub", ["safetensors"])
    _check_only_adapters(policy)
    checks.check_absent("path", path)
    modules = dict(_modules(policy.backbone))
    rank = max(a.shape[0] for a, _ in modules.values())
    tensors = {}
    for name, (a, b) in modules.items():
        room = rank - a.shape[0]
        prefix = f"base_model.model.{name}"
        tensors |= {
            f"{prefix}.lora_A.weight": np.pad(a, [(0, room), (0, 0)]),
            f"{prefix}.lora_B.weight": np.pad(b, [(0, 0), (0, room)]),
        }
    biases = _biases(policy.backbone)
    tensors |= biases
    # safetensors writes the memory of an array, whatever the order of its axes.
    tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
    checks.check_free_space(path, sum(x.nbytes for x in tensors.values()))
    # KerasHub needs it for its own export, but not otherwise.
    from safetensors.numpy import save_file

    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model and os.fspath(base_model),
        "r": rank,
        # The factors contain the scale of the adapters.
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.split(".")[-1] for name in modules}),
        "bias": "lora_only" if biases else "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with atomic_folder(path) as folder:
        weights = os.path.join(folder, "adapter_model.safetensors")
        save_file(tensors, weights, metadata={"format": "pt"})
        with open(os.path.join(folder, "adapter_config.json"), "w") as file:
            json.dump(config, file, indent=2)


def _check_only_adapters(policy):
    """Raises an error if adapters do not hold all that was trained.

    Raises:
        ValueError: naming the layers or weights.
    """
    family = type(policy.backbone).__name__
    if family not in FAMILIES or getattr(
        policy.backbone, "vision_encoder", None
    ):
        raise ValueError(
            "`policy` must be of a family whose layers have the names of "
            f"Transformers: one of {FAMILIES}, text only. `save_safetensors` "
            f"may write the whole model. Received: {family}"
        )
    if not lora_layers(policy):
        raise ValueError(
            "`policy` must have LoRA adapters: call "
            "`policy.backbone.enable_lora(rank)` before training, or write the "
            "whole model with `save_safetensors`. Received: a policy without "
            "adapters"
        )
    held = {id(v) for x in lora_layers(policy) for v in x.trainable_variables}
    others = [v.path for v in policy.trainable_variables if id(v) not in held]
    if others:
        raise ValueError(
            "`policy` must train its adapters only, or they would not hold "
            "what was learned: write the whole model with `save_safetensors`. "
            f"Received: {len(others)} other trainable weights, the first "
            f"{others[0]!r}"
        )


def _modules(backbone):
    """Names in Transformers, and PEFT's two factors, of all adapters."""
    for name, layer in _adapted(backbone):
        yield name, _factors(layer)


def _biases(backbone):
    """Biases of adapted layers, which Keras still trains."""
    return {
        f"base_model.model.{name}.base_layer.bias": ops.convert_to_numpy(
            layer.bias
        )
        .astype("float32")
        .reshape(-1)
        for name, layer in _adapted(backbone)
        if layer.bias is not None and layer.bias.trainable
    }


def _adapted(backbone):
    """Names in Transformers of the layers with adapters, and the layers."""
    for block in backbone.layers:
        number = BLOCK.fullmatch(block.name)
        for layer in block._flatten_layers():
            if not hasattr(layer, "lora_kernel_a"):
                continue
            if number is None or layer.name not in MODULES:
                raise ValueError(
                    "`policy` must have adapters only on the projections of "
                    "its blocks, which have a name in Transformers: "
                    f"{sorted(MODULES)}. Received: adapters on {layer.path!r}"
                )
            yield f"model.layers.{number[1]}.{MODULES[layer.name]}", layer


def _factors(layer):
    """The factors `A` (rank, inputs) and `B` (outputs, rank) of a layer.

    Keras's first factor has all axes of the kernel but the last, which
    may be outputs: the heads. Each head is then a block of `B` of its own.
    """
    a = ops.convert_to_numpy(layer.lora_kernel_a).astype("float32")
    b = ops.convert_to_numpy(layer.lora_kernel_b).astype("float32")
    b = b * (layer.lora_alpha / layer.lora_rank)
    equation = getattr(layer, "equation", "xi,io->xo")
    inputs, kernel, _ = equation.replace("->", ",").split(",")
    is_input = [letter in inputs for letter in kernel[:-1]]
    heads = [axis for axis, inside in enumerate(is_input) if not inside]
    others = [axis for axis, inside in enumerate(is_input) if inside]
    num_heads = int(np.prod([a.shape[axis] for axis in heads]))
    a = np.transpose(a, [*heads, len(is_input), *others])
    return (
        a.reshape(num_heads * layer.lora_rank, -1),
        np.kron(np.eye(num_heads, dtype="float32"), b.T),
    )
