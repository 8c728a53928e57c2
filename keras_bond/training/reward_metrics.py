"""Metrics that reward functions log, averaged on the host."""

import numpy as np


class RewardMetrics:
    """Means of what reward functions log with `log_metric`.

    Names and values come from Python that is not compiled, so they are no
    variables of the model. With several processes, each has its own.
    """

    PREFIX = "rewards/"

    def __init__(self):
        self.reset()

    def reset(self):
        """Begins an epoch."""
        self._step = {}
        self._sums = {}

    def add(self, values):
        """Adds values of the current step.

        Args:
            values: dict of lists of float.
        """
        for name, new in values.items():
            self._step.setdefault(name, []).extend(new)

    def end_step(self):
        """Ends the current step.

        Returns:
            dict: for each name, the mean over the steps of the epoch in which
            it was logged, where the value of a step is the mean of its values.
        """
        for name, values in self._step.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + np.mean(values), count + 1)
        self._step = {}
        return {
            self.PREFIX + name: total / count
            for name, (total, count) in self._sums.items()
        }


class LogsRewardMetrics:
    """Mixin for `keras.Model` that reports the metrics of reward functions.

    It uses `reward_metrics`, a `RewardMetrics`.
    """

    def host_logs(self):
        """What reward functions have logged, see `Step.host_logs`."""
        return self.reward_metrics.end_step()

    def reset_metrics(self):
        """Begins an epoch or an evaluation, see `keras.Model`."""
        super().reset_metrics()
        self.reward_metrics.reset()
