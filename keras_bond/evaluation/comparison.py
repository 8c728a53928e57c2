"""Comparison of two policies, or of two rewards, on the same prompts."""

import dataclasses

import numpy as np

from keras_bond.evaluation.bootstrap import Estimate
from keras_bond.evaluation.bootstrap import bootstrap
from keras_bond.evaluation.checks import as_paired_rewards


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One policy compared with another.

    Attributes:
        win_rate: `Estimate`. How often a sample of the first policy beats a
            sample of the other, ties counting one half. Above 1/2 the first
            is better.
        reward_difference: `Estimate`. Mean reward of the first minus that of
            the other, in units of the reward.
    """

    win_rate: Estimate
    reward_difference: Estimate


def win_rate(rewards, other_rewards):
    """How often a sample beats one of another policy, ties counting one half.

    All pairs of samples of the same prompt are compared in float64; each
    prompt has the same weight.

    Args:
        rewards: float array `(prompts, samples)`.
        other_rewards: float array `(prompts, other_samples)`.

    Returns:
        float in [0, 1].

    Raises:
        ValueError: if the numbers of prompts differ, or a reward is not finite.

    Example:

    >>> win_rate([[1, 2], [3, 4]], [[0, 1], [3, 2]])
    0.875
    """
    pair = as_paired_rewards(rewards, other_rewards, "other_rewards")
    return float(win_rate_by_prompt(*pair).mean())


def paired_bootstrap(
    rewards, other_rewards, confidence=0.95, num_resamples=1000, seed=0
):
    """Compares two policies on the same prompts, with confidence intervals.

    What makes a prompt easy or hard for both policies cancels: if the interval
    of the difference excludes 0, the policies differ, even where the intervals
    of the two means overlap.

    Args:
        rewards: float array `(prompts, samples)`.
        other_rewards: float array `(prompts, other_samples)` of the same
            prompts in the same order.
        confidence: float in (0, 1). Of each interval. Defaults to 0.95.
        num_resamples: int. How often the prompts are resampled, with
            replacement. Defaults to 1000.
        seed: int. Seed of the resampling. Defaults to 0.

    Returns:
        `Comparison`.

    Raises:
        ValueError: if there are fewer than 2 prompts, the numbers of prompts
            differ, a reward is not finite, or an argument is out of range.

    Example:

    >>> result = paired_bootstrap([[1, 2], [3, 4]], [[0, 1], [3, 2]])
    >>> result.win_rate.value, result.reward_difference.value
    (0.875, 1.0)
    """
    pair = as_paired_rewards(rewards, other_rewards, "other_rewards")
    means, other_means = (r.mean(axis=1) for r in pair)
    per_prompt = np.stack(
        [win_rate_by_prompt(*pair), means - other_means], axis=1
    )
    return Comparison(
        *bootstrap(
            lambda *means: means, per_prompt, confidence, num_resamples, seed
        )
    )


def win_rate_by_prompt(rewards, other_rewards):
    """`win_rate` of each prompt, a float64 array `(prompts,)`."""
    beaten, tied = count_beaten(rewards, other_rewards)
    return (beaten + 0.5 * tied).mean(axis=1) / other_rewards.shape[1]


def count_beaten(rewards, other_rewards):
    """For each sample, how many of the others it beats and ties with.

    In NumPy and float64, unlike that of `formulas`.

    Returns:
        two int arrays `(prompts, samples)`.
    """
    rewards, others = rewards[:, :, None], other_rewards[:, None, :]
    return (others < rewards).sum(axis=2), (others == rewards).sum(axis=2)


def agreement(rewards, gold_rewards):
    """How often two rewards order two samples of a prompt alike.

    Args:
        rewards: float64 array `(prompts, samples)`.
        gold_rewards: float64 array of the same shape.

    Returns:
        float in [0, 1]: among the pairs of samples that differ in
        `gold_rewards`, the share that `rewards` orders alike, ties of
        `rewards` counting one half; NaN if no pair differs.
    """
    signs, gold_signs = (
        np.sign(r[:, :, None] - r[:, None, :]) for r in (rewards, gold_rewards)
    )
    alike = (0.5 + 0.5 * signs * gold_signs)[gold_signs != 0]
    return float(alike.mean()) if alike.size else float("nan")
