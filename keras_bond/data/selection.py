"""Prompts that a policy can learn from, chosen by samples of it."""

import collections

import numpy as np

from keras_bond import backend
from keras_bond.arguments import check_count
from keras_bond.data.origin import FileColumns
from keras_bond.data.prompts import read_finite
from keras_bond.rewards.reward import get

# Equal rewards that are listed one by one, such as right and wrong.
MAX_LISTED = 4


def informative(
    bond,
    prompts,
    num_samples=8,
    reward=None,
    batch_size=None,
    seed=None,
    verbose=1,
):
    """Leaves out prompts whose samples all get the same reward.

    Such prompts are always solved, or never, and teach nothing: every sample
    ties. Call it before `fit`, and again when `frac_reward_zero_std` rises,
    with harder prompts. It draws from the policy as it is now, trains nothing,
    and prints how many prompts were left out and what their reward was.

    A prompt is judged by those of its samples that could be scored, and is
    left out if they are fewer than two. A prompt that is left out by chance is
    one that rarely has different rewards: more samples leave out fewer.

    Args:
        bond: a trainer, such as `keras_bond.Bond`.
        prompts: list or array of str, dict of columns, or other prompts as in
            `fit`, which must end. They are read once, into memory.
        num_samples: int, at least 2. Samples per prompt. Defaults to 8.
        reward: what tells the samples apart instead of the reward of `bond`,
            such as the one of a list that is about the answer. Defaults to
            `None`. The reward of `bond` is called, too.
        batch_size: int. Prompts per batch. Defaults to 32.
        seed: int, or `None` for the seed of `bond`.
        verbose: 0 or 1. Whether to print how many were left out. Defaults
            to 1.

    Returns:
        dict of lists with the prompts that were kept, in their order:
        `"prompts"`, or `"token_ids"` of prompts that were tokenized already,
        and all other columns. `fit`, `evaluate` and `generate` take it.

    Raises:
        TypeError: if `bond` is not a trainer, or `prompts` are not prompts.
        ValueError: if `num_samples` is below 2, the data are endless, or no
            prompt is kept.

    Example:

    ```python
    chosen = keras_bond.data.informative(bond, prompts, num_samples=16)
    bond.fit(chosen, batch_size=4)
    ```
    """
    if not hasattr(bond, "draw_scored"):
        raise TypeError(
            "`bond` must be a trainer, such as `keras_bond.Bond`, and comes "
            f"first: informative(bond, prompts). Received: bond of type "
            f"{type(bond).__name__}"
        )
    check_count("num_samples", num_samples, 2)
    reward = None if reward is None else get(reward)
    table = read_finite(prompts)
    columns = FileColumns(table.to_columns(), table.origin)
    samples, rewards = bond.draw_scored(
        columns, num_samples, batch_size=batch_size, seed=seed
    )
    if reward is not None:
        rewards = reward(samples)
    rewards = np.asarray(rewards, "float64").reshape(-1, num_samples)
    least, most = np.fmin.reduce(rewards, 1), np.fmax.reduce(rewards, 1)
    is_kept = least < most
    report = _report(rewards, is_kept)
    if not is_kept.any():
        raise ValueError(
            "At least one prompt must have samples of different rewards: take "
            "easier or harder prompts, a finer reward, or more samples. "
            f"Received: {report}"
        )
    if verbose and backend.devices.process_index() == 0:
        print(report)
    return table.take(np.flatnonzero(is_kept).tolist()).to_columns()


def _report(rewards, is_kept):
    """One sentence about prompts that are left out, and their rewards."""
    num_scored = np.isfinite(rewards).sum(axis=1)
    is_unscored = ~is_kept & (num_scored < 2)
    ties = np.fmin.reduce(rewards, 1)[~is_kept & ~is_unscored]
    counts = collections.Counter(ties.tolist())
    shown = ", ".join(
        f"{n} with {value:g}" for value, n in sorted(counts.items())
    )
    parts = [
        f"{is_kept.sum()} of {len(is_kept)} prompts are kept, {len(ties)} left "
        f"out because all of their {rewards.shape[1]} samples have one reward"
    ]
    if 0 < len(counts) <= MAX_LISTED:
        parts[0] += f" ({shown})"
    if is_unscored.any():
        parts.append(
            f"{is_unscored.sum()} because fewer than 2 of them have a score"
        )
    return ", ".join(parts)
