"""What reward functions log: metrics, and columns beside the completions."""

import contextlib
import math

from keras_bond.rewards.scores import RewardTypeError
from keras_bond.rewards.scores import RewardValueError
from keras_bond.rewards.scores import as_number
from keras_bond.rewards.scores import to_host


class RewardLog:
    """What was logged while some completions were scored.

    Attributes:
        metrics: dict of lists of float: for each name, one value for each call
            of `log_metric`.
        columns: dict of lists: for each name, one entry for each completion,
            `None` for those that were not logged.
    """

    def __init__(self):
        self.metrics = {}
        self.columns = {}

    def add(self, log, rows, count):
        """Adds what was logged while some of the completions were scored.

        Args:
            log: `RewardLog` of these completions.
            rows: sequence of int. Their indices.
            count: int. Number of completions in all.
        """
        for name, values in log.metrics.items():
            self.metrics.setdefault(name, []).extend(values)
        for name, values in log.columns.items():
            column = self.columns.setdefault(name, [None] * count)
            for row, value in zip(rows, values):
                column[row] = value


class Logger:
    """The functions with which one reward logs, named as in TRL.

    Args:
        reward: str. Name of the reward, for messages.
        log: `RewardLog` to which they write.
        count: int. Number of completions that the reward scores.
    """

    def __init__(self, reward, log, count):
        self._reward = reward
        self._log = log
        self._count = count

    def log_metric(self, name, value):
        """Logs a number, which `fit` and `evaluate` report as `rewards/name`.

        Args:
            name: str.
            value: float. What is logged is the mean over an epoch's steps.

        Raises:
            TypeError: if `value` is not a number.
        """
        self._check_name("log_metric", name)
        try:
            value = as_number(value)
        except OverflowError:
            value = math.inf
        except Exception as error:
            raise RewardTypeError(
                f"`log_metric` of the reward `{self._reward}` must be given a "
                f"number. Received: name={name!r}, value of type "
                f"{type(value).__name__}"
            ) from error
        self._log.metrics.setdefault(name, []).append(value)

    def log_extra(self, column, values):
        """Logs a column, which `HeldOut` shows beside the completions.

        Args:
            column: str.
            values: list with one entry for each completion.

        Raises:
            TypeError: if `values` is not a list.
            ValueError: if it has another length.
        """
        self._check_name("log_extra", column)
        values = to_host(values)
        if isinstance(values, (str, bytes, dict)) or not hasattr(
            values, "__len__"
        ):
            raise RewardTypeError(
                f"`log_extra` of the reward `{self._reward}` must be given a "
                "list with one entry for each completion. Received: "
                f"column={column!r}, values of type {type(values).__name__}"
            )
        if len(values) != self._count:
            raise RewardValueError(
                f"`log_extra` of the reward `{self._reward}` must be given one "
                f"entry for each completion. Received: column={column!r}, "
                f"{len(values)} values for {self._count} completions"
            )
        self._log.columns[column] = [_as_entry(value) for value in values]

    def _check_name(self, function, name):
        if not isinstance(name, str) or not name:
            raise RewardTypeError(
                f"`{function}` of the reward `{self._reward}` must be given a "
                f"name that is a string. Received: {name!r}"
            )


def _as_entry(value):
    """What a table and a line of JSON can hold of a value."""
    with contextlib.suppress(Exception):
        value = value.item()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return str(value)
