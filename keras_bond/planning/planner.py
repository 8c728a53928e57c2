"""The plan of a run, made of its actual objects, before it starts."""

import dataclasses
import math
import types

from keras_bond import backend
from keras_bond.backend import parts
from keras_bond.planning.activations import Network
from keras_bond.planning.activations import compiler_for
from keras_bond.planning.entries import ROLLOUT
from keras_bond.planning.entries import entries_of
from keras_bond.planning.entries import learning_batch
from keras_bond.planning.report import Plan
from keras_bond.planning.report import peaks_of
from keras_bond.planning.report import readable
from keras_bond.planning.settings import Settings
from keras_bond.rollouts import sizes
from keras_bond.training import checks
from keras_bond.training.anchored_trainer import AnchoredTrainer

# XLA takes seconds for so many blocks, 6 for 12 of them.
MOST_COMPILED_BLOCKS = 30
# Entries of all passes that the compiler counts with the learning pass.
COPIES = ("cast weights", "merged kernels")


def plan(bond, batch_size=32, device_memory="auto"):
    """Estimates the memory of a training step; nothing runs on the device.

    Weights, anchor, reference, optimizer, gradients and key-value caches are
    counted from the objects themselves and are exact. Activations are
    estimated: with JAX, for the device of this process and a policy of at most
    30 blocks, XLA compiles the learning pass in some seconds and says what it
    needs. Elsewhere a formula is right within a factor of 0.6 to 1.6; leave
    room. Everything is counted as on one device.

    On a CPU with JAX or TensorFlow `rematerialize` saves nothing, because the
    compiler undoes it; with `device_memory=` the plan is for an accelerator,
    where it does. Fused attention and LoRA need less than the formula says.

    Args:
        bond: a `keras_bond.Bond`, `JBond` or other trainer, before or after
            `compile`, whose arguments count. Before, the optimizer is taken
            to be Adam.
        batch_size: int. Prompts per step, as in `fit`. Defaults to 32.
        device_memory: number of bytes of an accelerator to plan for, such as
            16e9, or `"auto"` for the device of this process.

    Returns:
        a `keras_bond.Plan`: `print` it, ask whether it `fits`, or call its
        `check()`, which raises if not.

    Raises:
        TypeError: if `bond` is not a trainer.
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
    device, device_bytes, on_cpu = _device(device_memory)
    network = Network.of(bond.policy, compiler_for(on_cpu))
    problems = _rule_problems(bond, settings)
    is_here = isinstance(device_memory, str)
    if is_here and not problems and network.num_layers <= MOST_COMPILED_BLOCKS:
        network = _as_compiled(bond, settings, network)
    if device_bytes is not None:
        problems += _memory_problems(
            bond, settings, network, device, device_bytes
        )
    notes = []
    if not network.num_heads:
        notes.append(
            "Counted without attention scores: `policy.backbone` tells neither "
            "`num_query_heads` nor `num_attention_heads` nor `num_heads`."
        )
    return Plan(
        title=f"{type(bond).__name__} of "
        f"{sizes.num_values(bond.policy.variables):,} values, "
        f"{batch_size} prompts per step",
        entries=entries_of(bond, settings, network),
        device=device,
        device_bytes=device_bytes,
        problems=problems,
        notes=notes,
    )


def _device(device_memory):
    """Name and bytes of the device, and whether it is a CPU."""
    if isinstance(device_memory, str) and device_memory == "auto":
        name, num_bytes = backend.device_memory()
        return name, num_bytes, name.startswith("CPU")
    is_number = isinstance(device_memory, (int, float))
    if not is_number or not 0 < device_memory < math.inf:
        raise ValueError(
            "`device_memory` must be a number of bytes above 0, such as 16e9, "
            'or "auto" for the device of this process. '
            f"Received: device_memory={device_memory!r}"
        )
    return "an accelerator", int(device_memory), False


def _as_compiled(bond, settings, network):
    """The network, with activations as the compiler says."""
    needed = backend.learning_memory(
        bond, learning_batch(bond, settings.batch_size)
    )
    if needed is None:
        return network
    counted = {
        entry.name: entry.bytes
        for entry in entries_of(bond, settings, network)
        if entry.passes == ("learning",) or entry.name in COPIES
    }
    rest = sum(counted.values()) - counted["activations"]
    scale = max(0, needed - rest) / counted["activations"]
    return dataclasses.replace(network, scale=scale)


def _rule_problems(bond, settings):
    """What training would refuse, in its own words."""
    batch_size = settings.batch_size
    batches = types.SimpleNamespace(num_batches=1, prompts_per_batch=batch_size)
    lengths = bond.max_prompt_length, bond.max_completion_length
    questions = [
        (bond.check_ready,),
        (checks.check_lengths, bond.policy, *lengths),
        (bond.check_batch, batches),
    ]
    for name in ("rollout_batch_size", "gradient_accumulation_steps"):
        value = getattr(settings, name) or settings.batch_size
        questions.append(
            (parts.check_divides, name, value, settings.batch_size)
        )
    problems = []
    for check, *arguments in questions:
        try:
            check(*arguments)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _memory_problems(bond, settings, network, device, device_bytes):
    """Which passes do not fit, and the first change that makes them.

    In this order: a smaller rollout size; rematerialization, accumulation, or
    both; LoRA.
    """

    def most(passes, settings):
        peaks = peaks_of(entries_of(bond, settings, network))
        name = max(passes, key=peaks.get)
        return peaks[name], name

    def fix(passes, choices):
        for choice in choices:
            needed, _ = most(passes, choice)
            if needed <= device_bytes:
                return (
                    f"`compile({settings.changes(choice)})`, the rest as it "
                    f"is, brings it to {readable(needed)}."
                )
        return (
            "No argument of `compile` helps at a batch of "
            f"{settings.batch_size}: {_last_resort(bond.policy)}."
        )

    problems = []
    for passes, choices in (
        (ROLLOUT, settings.smaller_rollouts()),
        (("learning",), settings.smaller_learning()),
    ):
        needed, name = most(passes, settings)
        if needed > device_bytes:
            problems.append(
                f"`device_memory` must hold the whole step: {name} needs "
                f"{readable(needed)}, {readable(needed - device_bytes)} more "
                f"than {device} has. {fix(passes, choices)} "
                f"Received: device_memory={device_bytes}, {settings}"
            )
    return problems


def _last_resort(policy):
    shorter = "shorter prompts and completions, or a smaller policy"
    if any("lora" in v.path for v in policy.trainable_variables):
        return f'load the policy with dtype="bfloat16", or take {shorter}'
    return (
        "train adapters alone, `policy.backbone.enable_lora(8)` before the "
        "trainer is built, which leaves next to nothing of anchor, optimizer "
        f"and gradients, or take {shorter}"
    )
