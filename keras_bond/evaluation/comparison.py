"""Which of two policies is better, on the same prompts."""

import dataclasses

import numpy as np

from keras_bond.evaluation.bootstrap import Estimate
from keras_bond.evaluation.bootstrap import bootstrap
from keras_bond.evaluation.checks import as_paired_rewards


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One policy against another.

    Attributes:
        win_rate: `Estimate`. How often a sample of the one beats a sample of
            the other, ties counting one half. Better if above 1/2.
        reward_difference: `Estimate`. Mean reward of the one minus that of the
            other, in units of the reward.
    """

    win_rate: Estimate
    reward_difference: Estimate


def win_rate(rewards, other_rewards):
    """How often a sample beats one of another policy, ties counting one half.

    All pairs of samples of the same prompt are compared; each prompt counts
    the same.

    Args:
        rewards: float array `(prompts, samples)`.
        other_rewards: float array `(prompts, other_samples)`.

    Returns:
        float in [0, 1].

    Raises:
        ValueError: if the prompts are not as many, or a reward is not finite.
    """
    pair = as_paired_rewards(rewards, other_rewards, "other_rewards")
    return float(win_rate_by_prompt(*pair).mean())


def paired_bootstrap(
    rewards, other_rewards, confidence=0.95, num_resamples=1000, seed=0
):
    """Compares two policies on the same prompts, with confidence intervals.

    Prompts that are easy for both cancel: an interval of the difference that
    leaves out 0 is a difference, even where those of the two means overlap.

    Args:
        rewards: float array `(prompts, samples)`.
        other_rewards: float array `(prompts, other_samples)` of the same
            prompts in the same order.
        confidence: float in (0, 1). Of each interval. Defaults to 0.95.
        num_resamples: int. Times the prompts are drawn again, with
            replacement. Defaults to 1000.
        seed: int. Of these draws. Defaults to 0.

    Returns:
        `Comparison`.

    Raises:
        ValueError: if the prompts are fewer than 2 or not as many, a reward
            is not finite, or an argument is out of range.

    Example:

    >>> result = paired_bootstrap([[1, 2], [3, 4]], [[0, 1], [3, 2]])
    >>> result.win_rate.value, result.reward_difference.value
    (0.875, 1.0)
    """
    pair = as_paired_rewards(rewards, other_rewards, "other_rewards")
    mine, theirs = (r.mean(axis=1, dtype="float64") for r in pair)
    per_prompt = np.stack([win_rate_by_prompt(*pair), mine - theirs], axis=1)
    return Comparison(
        *bootstrap(
            lambda *means: means, per_prompt, confidence, num_resamples, seed
        )
    )


def win_rate_by_prompt(rewards, other_rewards):
    """`win_rate` of each prompt alone, a float64 array `(prompts,)`."""
    beaten, tied = count_beaten(rewards, other_rewards)
    return (beaten + 0.5 * tied).mean(axis=1) / other_rewards.shape[1]


def count_beaten(rewards, other_rewards):
    """For each sample, how many of the others it beats and ties with.

    In NumPy, unlike that of `formulas`: nothing is compiled for each shape.

    Returns:
        two int arrays `(prompts, samples)`.
    """
    mine, theirs = rewards[:, :, None], other_rewards[:, None, :]
    return (theirs < mine).sum(axis=2), (theirs == mine).sum(axis=2)
