"""Checks and conversion of rewards."""

import keras
import numpy as np

# Far enough below the largest float64 for sums and differences of rewards.
LARGEST = 1e300


def as_numpy(values):
    """Turns a tensor of any backend, or nested lists, into an array."""
    if keras.ops.is_tensor(values):
        values = keras.ops.convert_to_numpy(values)
    return np.asarray(values)


def as_rewards(values, name="rewards"):
    """Turns rewards into an array with one row per prompt.

    Args:
        values: float array, tensor or nested list `(prompts, samples)`.
        name: str. Name of the argument, for messages.

    Returns:
        float64 NumPy array `(prompts, samples)`.

    Raises:
        TypeError: if it is not an array of numbers.
        ValueError: if it has another shape, is empty or is not finite.
    """
    try:
        rewards = _as_floats(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"`{name}` must be numbers of shape `(prompts, samples)`, as many "
            f"for each prompt. Received: {name}={values!r}, {error}"
        ) from error
    if rewards.ndim != 2 or not rewards.size:
        raise ValueError(
            f"`{name}` must be of shape `(prompts, samples)`, with at least "
            f"one of each. Received: {name}.shape={rewards.shape}"
        )
    is_finite = np.abs(rewards) < LARGEST
    if not is_finite.all():
        wrong = np.flatnonzero(~is_finite.all(axis=1))
        raise ValueError(
            f"`{name}` must be finite numbers: leave out the prompts that "
            "could not be scored, for both policies if there are two. "
            f"Received: {name}[{wrong[0]}]={rewards[wrong[0]].tolist()}, and "
            f"{len(wrong)} such prompts in all"
        )
    return rewards


def _as_floats(values):
    # Unlike `np.asarray`, keeps the masks of masked arrays in a list.
    array = np.ma.asarray(
        as_numpy(values) if keras.ops.is_tensor(values) else values
    )
    # An array of objects may hold strings, which NumPy reads as numbers.
    kind = array.dtype.kind
    has_text = kind == "O" and any(
        isinstance(value, (str, bytes)) for value in array.data.flat
    )
    if kind in "cmMSU" or has_text:
        raise TypeError(f"values of dtype {array.dtype}")
    return array.astype("float64").filled(np.nan)


def as_paired_rewards(rewards, other_rewards, other_name):
    """Turns the rewards of two policies on the same prompts into arrays.

    Args:
        rewards: array, tensor or nested list `(prompts, samples)`.
        other_rewards: the same, `(prompts, other_samples)`.
        other_name: str. Name of the second argument, for messages.

    Returns:
        float64 NumPy arrays `(prompts, samples)`, `(prompts, other_samples)`.

    Raises:
        ValueError: as `as_rewards`, or if the numbers of prompts differ.
    """
    pair = (
        as_rewards(rewards),
        as_rewards(other_rewards, other_name),
    )
    if len(pair[0]) != len(pair[1]):
        raise ValueError(
            f"`rewards` and `{other_name}` must have one row for each prompt, "
            "the same prompts in the same order. "
            f"Received: rewards.shape={pair[0].shape}, "
            f"{other_name}.shape={pair[1].shape}"
        )
    # 0.1 in float32 and 0.1 in float64 are the same reward, and must tie.
    coarser = min(
        (_precision(rewards), _precision(other_rewards)),
        key=lambda dtype: dtype.itemsize,
    )
    return tuple(array.astype(coarser).astype("float64") for array in pair)


def _precision(values):
    """The dtype that rounded some rewards; float64 where nothing did."""
    dtype = as_numpy(values).dtype
    return np.dtype("float64") if dtype.kind in "biuO" else dtype


def check_scored(name, scored):
    """Raises an error if too few prompts are left to measure on.

    Args:
        name: str. What measures, for the message.
        scored: bool array `(prompts,)`. Whether all completions of a prompt
            have a reward.

    Raises:
        ValueError: if fewer than two prompts are scored.
    """
    if scored.sum() < 2:
        raise ValueError(
            f"At least 2 of the `prompts` of `{name}` must get a reward for "
            f"each completion. Received: {scored.sum()} of {len(scored)}"
        )
