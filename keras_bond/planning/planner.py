"""Plans a run from its actual objects, before it starts."""

import math

from keras_bond import backend
from keras_bond.planning.activations import Network
from keras_bond.planning.compilers import compiler_for
from keras_bond.planning.entries import PASSES
from keras_bond.planning.entries import Shapes
from keras_bond.planning.entries import entries_of
from keras_bond.planning.problems import problems_of
from keras_bond.planning.report import Plan
from keras_bond.planning.settings import Settings
from keras_bond.rollouts import sizes
from keras_bond.training.anchored_trainer import AnchoredTrainer


def plan(bond, batch_size=32, device_memory="auto"):
    """Says what a run needs, and whether it fits, before it starts.

    Weights, anchor, optimizer, gradients and key-value caches are counted
    from the objects themselves and are exact. Activations are estimated by a
    formula fitted to what XLA and PyTorch keep: expect them right within a
    factor of 0.6 to 1.6, and leave room. Nothing is computed on the device.
    All is counted as on one device.

    With JAX or TensorFlow on a CPU, `rematerialize` saves nothing, for the
    compiler undoes it; with `device_memory=` the plan is one for an
    accelerator, where it does. Fused attention and LoRA need less than the
    formula says.

    Args:
        bond: a `keras_bond.Bond`, `JBond` or other trainer, before or after
            `compile`, whose arguments count. Before, the optimizer is taken
            to be Adam.
        batch_size: int. Prompts a step, as in `fit`. Defaults to 32.
        device_memory: number of bytes of an accelerator to ask about, such as
            16e9, or `"auto"` for the device of this process.

    Returns:
        a `keras_bond.Plan`: `print` it, ask whether it `fits`, or call its
        `check()`, which raises if not.

    Raises:
        TypeError: if `bond` is no trainer.
        ValueError: if an argument is out of its range.

    Example:

    ```python
    bond = keras_bond.JBond(
        policy, reward, max_prompt_length=256, max_completion_length=256
    )
    bond.compile(keras.optimizers.Adam(3e-6), rollout_batch_size=8)
    print(keras_bond.plan(bond, batch_size=32, device_memory=16e9))
    ```
    """
    if not isinstance(bond, AnchoredTrainer):
        raise TypeError(
            "`bond` must be a trainer of keras_bond: plan what you would call "
            "`fit` of, such as a `keras_bond.JBond`. "
            f"Received: bond of type {type(bond).__name__}"
        )
    settings = Settings.of(bond, batch_size)
    device, device_bytes, compiler = _device(device_memory)
    shapes = Shapes.of(bond, settings)
    return Plan(
        title=_title(bond, settings),
        entries=entries_of(bond, settings, compiler),
        shapes={name: shapes.describe(name) for name in PASSES},
        decode_steps=_decode_steps(bond),
        device=device,
        device_bytes=device_bytes,
        problems=problems_of(bond, settings, compiler, device, device_bytes),
        notes=_notes(bond, compiler),
    )


def _device(device_memory):
    """Name, bytes and compiler of the device that is asked about."""
    if isinstance(device_memory, str) and device_memory == "auto":
        name, num_bytes = backend.device_memory()
        return name, num_bytes, compiler_for(on_cpu=name.startswith("CPU"))
    is_number = isinstance(device_memory, (int, float))
    if not is_number or not 0 < device_memory < math.inf:
        raise ValueError(
            "`device_memory` must be a number of bytes above 0, such as 16e9, "
            'or "auto" for the device of this process. '
            f"Received: device_memory={device_memory!r}"
        )
    return "an accelerator", int(device_memory), compiler_for(on_cpu=False)


def _title(bond, settings):
    values = sizes.num_values(bond.policy.variables)
    return (
        f"{type(bond).__name__} of {values:,} values, "
        f"{settings.batch_size} prompts a step"
    )


def _notes(bond, compiler):
    if Network.of(bond.policy, compiler).num_heads:
        return []
    return [
        "Counted without attention scores: `policy.backbone` tells neither "
        "`num_query_heads` nor `num_heads`."
    ]


def _decode_steps(bond):
    """Most tokens decided one after the other.

    Decoding begins at the end of the shortest prompt of a batch, which may be
    the start token alone.
    """
    return bond.max_prompt_length - 1 + bond.max_completion_length
