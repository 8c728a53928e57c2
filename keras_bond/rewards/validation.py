"""Checks of what a reward returns."""

import math
import numbers

import numpy as np


class RewardError(Exception):
    """A bug in a reward: calling it again would not help."""


class RewardTypeError(RewardError, TypeError):
    """A reward returned something that is not numbers."""


class RewardValueError(RewardError, ValueError):
    """A reward returned wrong numbers, or needs data that are missing."""


def as_scores(values, name, expected):
    """Turns what a reward returned into an array, or raises an error.

    Args:
        values: list, tuple or array of numbers; `None` for "cannot score".
        name: str. Name of the reward, for messages.
        expected: int. Number of completions that were to be scored.

    Returns:
        float32 array `(expected,)`, NaN where the reward returned `None`.

    Raises:
        TypeError: if `values` is not a list of numbers.
        ValueError: if there are too few or too many, or one is not finite.
    """
    values = _as_list(values, name)
    if len(values) != expected:
        raise RewardValueError(
            f"The reward `{name}` must return one number for each completion. "
            f"Received: {len(values)} numbers for {expected} completions"
        )
    return np.array(
        [_as_score(value, name, i) for i, value in enumerate(values)],
        dtype="float32",
    )


def _as_list(values, name):
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    if not isinstance(values, (str, bytes, dict)):
        if not isinstance(values, (list, tuple)) and hasattr(
            values, "__array__"
        ):
            values = np.asarray(values)
            values = values.reshape(-1) if values.ndim else values
            values = values.tolist()
        if isinstance(values, (list, tuple)):
            return list(values)
    raise RewardTypeError(
        f"The reward `{name}` must return a list or an array with one number "
        "for each completion. "
        f"Received: {values!r} of type {type(values).__name__}"
    )


def _as_score(value, name, i):
    if value is None:
        return math.nan
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, numbers.Real):
        raise RewardTypeError(
            f"The reward `{name}` must return numbers, or None for a "
            "completion that it cannot score. "
            f"Received: {value!r} of type {type(value).__name__} for "
            f"completion {i}"
        )
    if not math.isfinite(value):
        raise RewardValueError(
            f"The reward `{name}` must return finite numbers; return None for "
            "a completion that it cannot score. "
            f"Received: {value} for completion {i}"
        )
    return float(value)
