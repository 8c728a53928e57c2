"""Arguments of `fit` and `compile` that decide the shapes of a step."""

import dataclasses

from keras_bond.arguments import check_count


@dataclasses.dataclass(frozen=True)
class Settings:
    """The numbers of a step that can be changed without a new trainer.

    Attributes:
        batch_size: int. Prompts per step.
        rollout_batch_size: int, or `None` for all of them.
        gradient_accumulation_steps: int.
        rematerialize: bool.
    """

    batch_size: int
    rollout_batch_size: int | None
    gradient_accumulation_steps: int
    rematerialize: bool

    @classmethod
    def of(cls, bond, batch_size):
        """Those of a trainer, compiled or not."""
        check_count("batch_size", batch_size, 1)
        return cls(
            batch_size,
            bond.rollout_batch_size,
            bond.gradient_accumulation_steps,
            bool(bond.rematerialize),
        )

    @property
    def rollout_prompts(self):
        """int. Prompts whose completions are drawn at a time."""
        return min(self.rollout_batch_size or self.batch_size, self.batch_size)

    @property
    def learning_prompts(self):
        """int. Prompts whose activations are in memory at a time."""
        return -(-self.batch_size // self.gradient_accumulation_steps)

    def smaller_rollouts(self):
        """Settings that draw fewer and fewer prompts at a time."""
        sizes = self._divisors(1, self.rollout_prompts)[::-1]
        return [self._with(rollout_batch_size=size) for size in sizes]

    def smaller_learning(self):
        """Settings that keep fewer and fewer activations, cheapest first."""
        now = self.gradient_accumulation_steps
        more = self._divisors(now + 1, self.batch_size + 1)
        choices = [(steps, True) for steps in more]
        if not self.rematerialize:
            choices = [(now, True), *((n, False) for n in more), *choices]
        return [
            self._with(gradient_accumulation_steps=steps, rematerialize=again)
            for steps, again in choices
        ]

    def _divisors(self, start, stop):
        return [n for n in range(start, stop) if self.batch_size % n == 0]

    def _with(self, **changes):
        return dataclasses.replace(self, **changes)

    def changes(self, other):
        """The arguments in which `other` differs, as they are written."""
        current, new = dataclasses.asdict(self), dataclasses.asdict(other)
        return ", ".join(
            f"{name}={value}"
            for name, value in new.items()
            if value != current[name]
        )

    def __str__(self):
        values = dataclasses.asdict(self).items()
        return ", ".join(f"{name}={value}" for name, value in values)
