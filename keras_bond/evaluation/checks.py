"""Rewards as arrays, or a message that says what is wrong with them."""

import keras
import numpy as np


def as_numpy(values):
    """Turns a tensor of any backend, or nested lists, into an array."""
    if keras.ops.is_tensor(values):
        values = keras.ops.convert_to_numpy(values)
    return np.asarray(values)


def as_rewards(values, name="rewards"):
    """Turns rewards into an array of one row a prompt.

    Rewards are compared in float32, as in training: two of them tie here if
    and only if they tie there.

    Args:
        values: float array, tensor or nested list `(prompts, samples)`.
        name: str. Name of the argument, for messages.

    Returns:
        float32 NumPy array `(prompts, samples)`.

    Raises:
        TypeError: if it is no array of numbers.
        ValueError: if it has another shape, is empty or is not finite.
    """
    try:
        with np.errstate(over="ignore"):
            rewards = as_numpy(values).astype("float32")
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` must be numbers of shape `(prompts, samples)`, as many "
            f"for each prompt. Received: {name}={values!r}, {error}"
        ) from error
    if rewards.ndim != 2 or not rewards.size:
        raise ValueError(
            f"`{name}` must be of shape `(prompts, samples)`, with at least "
            f"one of each. Received: {name}.shape={rewards.shape}"
        )
    if not np.isfinite(rewards).all():
        wrong = np.flatnonzero(~np.isfinite(rewards).all(axis=1))
        raise ValueError(
            f"`{name}` must be finite float32 numbers: leave out the prompts "
            "that could not be scored, of both policies if there are two. "
            f"Received: {name}[{wrong[0]}]={rewards[wrong[0]].tolist()}, and "
            f"{len(wrong)} such prompts in all"
        )
    return rewards


def as_paired_rewards(rewards, other_rewards, other_name):
    """Turns the rewards of two policies on the same prompts into arrays.

    Returns:
        float32 NumPy arrays `(prompts, samples)`, `(prompts, other_samples)`.

    Raises:
        ValueError: as `as_rewards`, or if the prompts are not as many.
    """
    rewards = as_rewards(rewards)
    other_rewards = as_rewards(other_rewards, other_name)
    if len(rewards) != len(other_rewards):
        raise ValueError(
            f"`rewards` and `{other_name}` must have one row for each prompt, "
            "the same prompts in the same order. "
            f"Received: rewards.shape={rewards.shape}, "
            f"{other_name}.shape={other_rewards.shape}"
        )
    return rewards, other_rewards
