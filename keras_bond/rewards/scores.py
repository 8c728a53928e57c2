"""What rewards return: checks, and what a device gets of it.

The host scores in float64, the device computes in float32. There, 1e6 and
1e6 + 0.01 are one number; so the host decides order and ties, and hands over
what the rounding of the rewards took away.
"""

import contextlib
import decimal
import math
import numbers

import keras
import numpy as np

from keras_bond.arguments import shown

# Rewards are compared in float64, but the logged means are float32: sums of
# many rewards must stay below its largest number, 3.4e38.
LARGEST = 1e30


class RewardError(Exception):
    """A bug in a reward: calling it again would not help."""


class RewardTypeError(RewardError, TypeError):
    """A reward returned something that is not numbers."""


class RewardValueError(RewardError, ValueError):
    """A reward returned wrong numbers, or needs data that are missing."""


def as_scores(values, name, expected):
    """Turns what a reward returned into an array, or raises an error.

    Args:
        values: list, tuple, array or tensor of numbers, `(expected,)` or
            `(expected, 1)`; `None` or a masked entry for "cannot score".
        name: str. Name of the reward, for messages.
        expected: int. Number of completions that were to be scored.

    Returns:
        float64 array `(expected,)`, NaN where the reward returned `None`.

    Raises:
        TypeError: if `values` is not a list of numbers.
        ValueError: if there are too few or too many, or one is not finite or
            above `LARGEST`.
    """
    values = _as_list(values, name)
    if len(values) != expected:
        raise RewardValueError(
            f"The reward `{name}` must return one number for each completion. "
            f"Received: {len(values)} numbers for {expected} completions"
        )
    scores = [_as_score(value, name, i) for i, value in enumerate(values)]
    return np.array(scores, "float64")


def check_scores(scores, name, expected):
    """Checks scores, which are NaN for "cannot score".

    Args:
        scores: as for `as_scores`, or NaN for "cannot score".
        name: str. Name of the reward, for messages.
        expected: int. Number of completions that were to be scored.

    Returns:
        float64 array `(expected,)`.

    Raises:
        TypeError, ValueError: as `as_scores`, except for NaN.
    """
    values = _as_list(scores, name)
    values = [None if _is_nan(value) else value for value in values]
    return as_scores(values, name, expected)


def as_number(value):
    """Turns a number of any library into a float; a masked one is NaN.

    Raises:
        TypeError: if it is not a real number.
        OverflowError: if it is above the largest float.
    """
    value = to_host(value)
    # NumPy turns dates and durations in nanoseconds into integers.
    if getattr(getattr(value, "dtype", None), "kind", None) in ("m", "M"):
        raise TypeError("a date or a duration")
    if hasattr(value, "item"):
        # Also refuses an array of several.
        value, is_masked = value.item(), np.ma.is_masked(value)
        value = math.nan if is_masked else value
    if not isinstance(value, (numbers.Real, decimal.Decimal)):
        raise TypeError(type(value).__name__)
    return float(value)


def to_host(values):
    """Copies a tensor to the host; returns lists and arrays unchanged."""
    if isinstance(values, keras.Variable):
        values = values.value
    # Tensors of PyTorch: NumPy has no bfloat16, and reads no CUDA memory.
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        is_bfloat16 = str(values.dtype) == "torch.bfloat16"
        return (values.float() if is_bfloat16 else values).numpy()
    # Tensors of TensorFlow: NumPy cannot read single numbers in bfloat16.
    if hasattr(values, "numpy"):
        values = values.numpy()
    if not isinstance(values, (list, tuple)) and hasattr(values, "__array__"):
        # Keeps the mask of a masked array.
        values = np.asanyarray(values)
    return values


def to_python(array):
    """Turns an array into lists, but no date or duration into an integer."""
    values = array.tolist()
    kind = getattr(getattr(array, "dtype", None), "kind", None)
    if kind not in ("m", "M"):
        return values
    # Those in nanoseconds, which Python's dates cannot hold.
    if any(isinstance(v, int) for v in np.asarray(values, object).flat):
        return list(array) if array.ndim else array
    return values


def _is_nan(value):
    with contextlib.suppress(Exception):
        return math.isnan(as_number(value))
    return False


def _as_list(values, name):
    try:
        values = to_host(values)
        if isinstance(values, (list, tuple)) or getattr(values, "ndim", 0):
            return list(values)
        problem = ""
    except Exception as error:
        problem = f", {type(error).__name__}: {error}"
    raise RewardTypeError(
        f"The reward `{name}` must return a list or an array with one number "
        f"for each completion. Received: {shown(values)} of type "
        f"{type(values).__name__}{problem}"
    )


def _as_score(value, name, i):
    if value is None or np.ma.is_masked(value):
        return math.nan
    try:
        score = as_number(value)
    except OverflowError:
        score = math.inf
    except Exception as error:
        raise RewardTypeError(
            f"The reward `{name}` must return numbers, or None for a "
            "completion that it cannot score. "
            f"Received: {shown(value)} of type {type(value).__name__} for "
            f"completion {i}"
        ) from error
    _check_finite(score, name, i, value)
    return score


def _check_finite(score, name, i, value=None):
    # Also true for NaN.
    if not abs(score) <= LARGEST:
        value = score if value is None else value
        raise RewardValueError(
            f"The reward `{name}` must return finite numbers, at most "
            f"{LARGEST:g} in absolute value, because logged means are float32: "
            "scale it down, or lower its `reward_weights`; return None for a "
            "completion that it cannot score. "
            f"Received: {shown(value)} for completion {i}"
        )


def for_device(rewards):
    """Turns float64 rewards into float32 arrays without loss.

    Args:
        rewards: finite float64 array `(prompts, samples)`.

    Returns:
        dict of float32 arrays `(prompts, samples)`: `rewards`, the rounded
        rewards; `reward_residuals`, what is missing from them; and `ranks`,
        see `dense_ranks`.
    """
    rounded = rewards.astype("float32")
    return {
        "rewards": rounded,
        "reward_residuals": (rewards - rounded).astype("float32"),
        "ranks": dense_ranks(rewards),
    }


def dense_ranks(rewards):
    """Ranks the samples of each prompt, 0 for the worst; ties share a rank.

    Args:
        rewards: finite float64 array `(prompts, samples)`.

    Returns:
        float32 array `(prompts, samples)`.
    """
    ranks = [np.unique(row, return_inverse=True)[1] for row in rewards]
    return np.reshape(ranks, rewards.shape).astype("float32")
