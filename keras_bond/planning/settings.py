"""What decides the shapes of a step."""

import dataclasses

from keras_bond.arguments import check_count


@dataclasses.dataclass(frozen=True)
class Settings:
    """The numbers of a step that can be changed without a new trainer.

    Attributes:
        batch_size: int. Prompts a step.
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
        """Yields what draws fewer and fewer prompts at a time."""
        for size in range(self.rollout_prompts - 1, 0, -1):
            if self.batch_size % size == 0:
                yield dataclasses.replace(self, rollout_batch_size=size)

    def smaller_learning(self):
        """Yields what keeps fewer and fewer activations, the cheapest first."""
        now = self.gradient_accumulation_steps
        more = [
            steps
            for steps in range(now + 1, self.batch_size + 1)
            if self.batch_size % steps == 0
        ]
        choices = [(now, True), *((steps, False) for steps in more)]
        if self.rematerialize:
            choices = []
        choices += [(steps, True) for steps in more]
        for steps, rematerialize in choices:
            yield dataclasses.replace(
                self,
                gradient_accumulation_steps=steps,
                rematerialize=rematerialize,
            )

    def changes(self, other):
        """The arguments in which `other` differs, as they are written."""
        return ", ".join(
            f"{field.name}={getattr(other, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        )

    def __str__(self):
        return ", ".join(
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
        )
