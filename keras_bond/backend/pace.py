"""Wall time and tokens of training steps."""

import time

import numpy as np


class Pace:
    """Seconds and completion tokens of the steps of an epoch.

    A step is the drawing, scoring and learning of one batch; what callbacks do
    between steps is not counted. The first step compiles: it counts only until
    another one is known.
    """

    def __init__(self):
        self.reset()

    def reset(self):
        """Begins an epoch."""
        self.steps, self.seconds, self.tokens = 0, 0.0, 0
        self._compiles = False
        self.is_running = False

    def begin_step(self, compiles):
        """Begins a step.

        Args:
            compiles: bool. Whether it is the first one of the trainer.
        """
        if self._compiles:
            self.reset()
        self._compiles = compiles
        self.is_running, self._started = True, time.perf_counter()

    def count(self, mask):
        """Counts the tokens of completions.

        Args:
            mask: bool array, `False` for padding.
        """
        self.tokens += int(np.sum(mask))

    def end_step(self):
        """Ends a step.

        Returns:
            dict of float: mean seconds of the steps so far, and their tokens
            per second.
        """
        self.steps += 1
        self.seconds += time.perf_counter() - self._started
        self.is_running = False
        return {
            "step_time": self.seconds / self.steps,
            "tokens_per_second": self.tokens / self.seconds,
        }
