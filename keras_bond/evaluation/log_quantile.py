"""Effective N of a policy, from the mean logarithm of its quantiles.

Without ties, the quantile `u` of a Best-of-N sample under the initial policy is
the largest of N uniform numbers. Its distribution is `Beta(N, 1)` for every
prompt and reward, and `E[log u] = -1/N` (theorem 1 of BOND, Sessa et al., ICLR
2025, arXiv 2407.14622). This holds for real N: above 1 for a policy that is
better than the initial one, below 1 for a worse one.
"""

import math

import numpy as np

from keras_bond.evaluation.bootstrap import bootstrap
from keras_bond.evaluation.checks import as_paired_rewards
from keras_bond.evaluation.comparison import count_beaten


def effective_n(
    rewards, reference_rewards, confidence=0.95, num_resamples=1000, seed=0
):
    """The N for which a policy is as good as Best-of-N of the initial policy.

    It is 1 for the initial policy itself, and below 1 for a worse policy. Only
    ranks count: a strictly increasing transform of the rewards changes nothing.

    It estimates `N = -1 / E[log u]`, where `u` is the quantile of a sample
    under the initial policy. From k samples of the initial policy per prompt
    it inverts the mean of `H_c - H_k`, where `c` of the k samples have a lower
    reward and `H_c = 1 + 1/2 + ... + 1/c`. That is exact for a policy on the
    Best-of-N curve. Off the curve it gets closer to `-1 / E[log u]` as k grows.

    Ties are broken at random, so that the initial policy gets 1 whatever its
    ties. Where rewards take few values, ties hide how good the best answers
    are, and Best-of-N itself gets less than N.

    Args:
        rewards: float array `(prompts, samples)`, of the policy.
        reference_rewards: float array `(prompts, pool)`, of independent
            samples of the initial policy for the same prompts; 16 or more.
        confidence: float in (0, 1). Of the interval. Defaults to 0.95.
        num_resamples: int. How often the prompts are resampled, with
            replacement. Defaults to 1000.
        seed: int. Seed of the resampling. Defaults to 0.

    Returns:
        `Estimate`; infinite where every sample of the initial policy is beaten.

    Raises:
        ValueError: if there are fewer than 2 prompts or fewer than 2 samples
            of the initial policy per prompt, the numbers of prompts differ, a
            reward is not finite, or an argument is out of range.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> initial = rng.normal(size=(500, 16))
    >>> best_of_4 = rng.normal(size=(500, 2, 4)).max(axis=-1)
    >>> n = effective_n(best_of_4, initial)
    >>> n.low < 4 < n.high
    True
    """
    rewards, reference_rewards = as_paired_rewards(
        rewards, reference_rewards, "reference_rewards"
    )
    k = reference_rewards.shape[1]
    if k < 2:
        raise ValueError(
            "`reference_rewards` must hold at least 2 samples per prompt, "
            "better 16: draw more from the initial policy. Received: "
            f"{k} sample per prompt"
        )
    per_prompt = mean_harmonic(rewards, reference_rewards)
    (estimate,) = bootstrap(
        lambda mean: (n_from_harmonic(mean, k),),
        per_prompt[:, None],
        confidence,
        num_resamples,
        seed,
    )
    return estimate


def mean_harmonic(rewards, reference_rewards):
    """Mean of `H_c - H_k` over the samples of each prompt.

    Args:
        rewards: float64 array `(prompts, samples)`.
        reference_rewards: float64 array `(prompts, k)`.

    Returns:
        float64 array `(prompts,)`.
    """
    beaten, tied = count_beaten(rewards, reference_rewards)
    k = reference_rewards.shape[1]
    return harmonic(beaten, tied, k).mean(axis=1)


def harmonic(beaten, tied, k):
    """`H_c - H_k` of samples, a mean over the places of those that tie.

    A sample that ties with t samples of the initial policy is equally likely
    to take each of the `t + 1` places among them. (Half a win for each tie
    would give the initial policy with a constant reward an N of up to 1.44.)

    Args:
        beaten: int array. How many of k samples of the initial policy have a
            lower reward.
        tied: int array of the same shape. How many have the same.
        k: int, at least 1.

    Returns:
        float64 array of the same shape.
    """
    # Summed from the top, where the table is 0: the best of all gets exactly 0.
    table = np.append(-np.cumsum(1.0 / np.arange(k, 0, -1))[::-1], 0.0)
    tails = np.append(np.cumsum(table[::-1])[::-1], 0.0)
    return (tails[beaten] - tails[beaten + tied + 1]) / (tied + 1)


def expected_harmonic(n, k):
    """`E[H_c - H_k] = -(1/N)(1 - 1/C(N+k, k))` under Best-of-N.

    `c` of `k` samples of the initial policy lie below the Best-of-N sample.
    `H_c - H_k` is unbiased for the first k terms of `log u = -Σ_m (1-u)^m / m`,
    whose means are `-1 / (m C(N+m, m))`.

    Args:
        n: float, above 0.
        k: int, at least 1. Samples of the initial policy per prompt.

    Returns:
        float in (-H_k, 0).
    """
    log_binomial = (
        math.lgamma(n + k + 1) - math.lgamma(n + 1) - math.lgamma(k + 1)
    )
    return math.expm1(-log_binomial) / n


def n_from_harmonic(mean, k):
    """The N whose `expected_harmonic` is `mean`, by bisection.

    For `k = 1` it is `w / (1 - w)` of the win rate `w = 1 + mean`; for `k → ∞`
    it is `-1 / mean`.

    Args:
        mean: float in [-H_k, 0].
        k: int, at least 1. Samples of the initial policy per prompt.

    Returns:
        float, infinity for a mean of 0.
    """
    if mean >= 0:
        return math.inf
    low, high = 0.0, -1.0 / mean
    for _ in range(50):
        middle = (low + high) / 2
        if expected_harmonic(middle, k) < mean:
            low = middle
        else:
            high = middle
    return low
