"""What would stop a run, said before it starts."""

import types

from keras_bond.backend import parts
from keras_bond.planning.entries import ROLLOUT
from keras_bond.planning.entries import entries_of
from keras_bond.planning.report import peaks_of
from keras_bond.planning.report import readable
from keras_bond.training import checks

LEARNING = ("learning",)


def problems_of(bond, settings, compiler, device, device_bytes):
    """Lists what does not divide and what does not fit.

    Args:
        bond: a `keras_bond` trainer.
        settings: a `Settings`.
        compiler: a `Compiler`.
        device: str. Name of the device.
        device_bytes: int, or `None` where it is not known.

    Returns:
        list of str.
    """
    batches = types.SimpleNamespace(
        num_batches=1, prompts_per_batch=settings.batch_size
    )
    questions = [
        (bond.check_ready,),
        (
            checks.check_lengths,
            bond.policy,
            bond.max_prompt_length,
            bond.max_completion_length,
        ),
        (bond.check_batch, batches),
        *(
            (
                parts.check_divides,
                name,
                getattr(settings, name) or settings.batch_size,
                settings.batch_size,
            )
            for name in ("rollout_batch_size", "gradient_accumulation_steps")
        ),
    ]
    problems = [_answer(*question) for question in questions]
    if device_bytes is not None:
        fitting = Fitting(bond, settings, compiler, device, device_bytes)
        problems += [
            fitting.problem(ROLLOUT, settings.smaller_rollouts()),
            fitting.problem(LEARNING, settings.smaller_learning()),
        ]
    return [problem for problem in problems if problem]


def _answer(check, *arguments):
    """What a check complains about, in the words that training would use."""
    try:
        check(*arguments)
    except ValueError as error:
        return str(error)
    return None


class Fitting:
    """Whether the passes of a step fit, and what would make them.

    The arguments are those of `problems_of`.
    """

    def __init__(self, bond, settings, compiler, device, device_bytes):
        self.bond = bond
        self.settings = settings
        self.compiler = compiler
        self.device = device
        self.device_bytes = device_bytes

    def problem(self, passes, choices):
        """Says by how much the largest of some passes does not fit.

        Args:
            passes: tuple of str.
            choices: iterable of `Settings` that need less and less.

        Returns:
            str, or `None` if they all fit.
        """
        name, needed = self._most(passes, self.settings)
        if needed <= self.device_bytes:
            return None
        return (
            f"`device_memory` must hold the whole step: {name} needs "
            f"{readable(needed)}, {readable(needed - self.device_bytes)} more "
            f"than {self.device} has. {self._fix(passes, choices)} "
            f"Received: device_memory={self.device_bytes}, {self.settings}"
        )

    def _most(self, passes, settings):
        entries = entries_of(self.bond, settings, self.compiler)
        peaks = peaks_of(entries)
        name = max(passes, key=peaks.get)
        return name, peaks[name]

    def _fix(self, passes, choices):
        for choice in choices:
            _, needed = self._most(passes, choice)
            if needed <= self.device_bytes:
                arguments = self.settings.changes(choice)
                return (
                    f"`compile({arguments})`, the rest as it is, brings it to "
                    f"{readable(needed)}."
                )
        return (
            f"No argument of `compile` helps at a batch of "
            f"{self.settings.batch_size}: {self._last_resort()}."
        )

    def _last_resort(self):
        policy = self.bond.policy
        adapted = any("lora" in v.path for v in policy.trainable_variables)
        shorter = "shorter prompts and completions, or a smaller policy"
        if adapted:
            return f'load the policy with dtype="bfloat16", or take {shorter}'
        return (
            "train adapters alone, `policy.backbone.enable_lora(8)` before "
            "the trainer is built, which leaves next to nothing of anchor, "
            f"optimizer and gradients, or take {shorter}"
        )
