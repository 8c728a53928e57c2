"""The Best-of-N curve of the initial policy: reward, win rate and KL."""

import numpy as np

from keras_bond.arguments import check_count
from keras_bond.arguments import check_list
from keras_bond.arguments import shown
from keras_bond.evaluation.checks import as_numpy
from keras_bond.evaluation.checks import as_rewards
from keras_bond.formulas import best_of_n
from keras_bond.rewards import scores as scores_lib


def best_of_n_frontier(rewards, ns=(1, 2, 4, 8)):
    """Exact reward, win rate and KL of Best-of-N, for every N from one pool.

    The order statistics of the pool are unbiased for reward and win rate (see
    `keras_bond.formulas.best_of_n_weights`); the KL uses the quantiles of the
    pool in place of the exact ones.

    Args:
        rewards: float array `(prompts, pool)`: rewards of independent samples
            of the initial policy; `pool` must be above the largest N.
        ns: tuple of int.

    Returns:
        list of dicts with `n`, `reward`, `win_rate` (against one sample of
        the initial policy, ties counting one half) and `kl` (to the initial
        policy, in nats).

    Raises:
        ValueError: if a reward is not finite, or an N is not below the size
            of the pool.

    Example:

    >>> one, three = best_of_n_frontier([[1, 2, 3, 4], [5, 6, 7, 8]], (1, 3))
    >>> one["reward"], three["reward"]
    (4.5, 5.75)
    """
    rewards = as_rewards(rewards)
    check_list("ns", ns, "integers")
    for n in ns:
        check_count("ns", n, 1)
    pool = rewards.shape[1]
    if max(ns, default=0) >= pool:
        raise ValueError(
            "`rewards` must hold more samples per prompt than the largest N. "
            f"Received: a pool of {pool} for ns={shown(tuple(ns))}"
        )
    ranks = scores_lib.dense_ranks(rewards)
    return [_best_of_n(rewards, ranks, n) for n in ns]


def _best_of_n(rewards, ranks, n):
    weights = as_numpy(best_of_n.best_of_n_weights(ranks, n))
    # Deviations from the mean: float32 weights sum to 1 only approximately.
    means = rewards.mean(axis=1, keepdims=True)
    best = means[:, 0] + (weights * (rewards - means)).sum(axis=1)
    return {
        "n": n,
        "reward": float(best.mean()),
        "win_rate": _mean(best_of_n.best_of_n_win_rate(ranks, n)),
        "kl": _mean(best_of_n.best_of_n_kl(ranks, n)),
    }


def _mean(per_prompt):
    return float(as_numpy(per_prompt).mean(dtype="float64"))


def excess_kl(win_rate, kl):
    """KL of a policy minus that of Best-of-N at the same win rate.

    Without ties, Best-of-N beats one sample of the initial policy with
    probability `w = N / (N + 1)` and has the KL `log N - (N-1)/N` to it
    (theorem 1 of BOND, Sessa et al., arXiv 2407.14622). Both hold for real N,
    so a policy with win rate w is compared with `N = w / (1 - w)`. 0 is on the
    Best-of-N curve, and more is KL that a policy spends beyond it.

    Where many rewards tie, Best-of-N itself lies a little off 0: compare
    policies on the same prompts and rewards.

    Args:
        win_rate: float or float array, in [0, 1]. Against single samples of
            the initial policy, ties counting one half; see `win_rate`. At 1/2
            and below, Best-of-N has a KL of 0.
        kl: float or float array of the same shape. KL of the policy to the
            initial policy, in nats per sequence.

    Returns:
        float, or float64 array, in nats; minus infinity for a win rate of 1.

    Raises:
        TypeError, ValueError: if `win_rate` is not a number in [0, 1].

    Example:

    >>> round(excess_kl(win_rate=2 / 3, kl=0.25), 3)
    0.057
    """
    try:
        win_rate, kl = (np.asarray(x, "float64") for x in (win_rate, kl))
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            "`win_rate` and `kl` must be numbers or arrays of numbers. "
            f"Received: win_rate={win_rate!r}, kl={kl!r}, {error}"
        ) from error
    if not np.all((win_rate >= 0) & (win_rate <= 1)):
        raise ValueError(
            "`win_rate` must be between 0 and 1, a share and not a percentage. "
            f"Received: win_rate={win_rate}"
        )
    with np.errstate(divide="ignore"):
        n = np.maximum(win_rate / (1.0 - win_rate), 1.0)
    excess = kl - (np.log(n) - 1.0 + 1.0 / n)
    return excess if excess.ndim else float(excess)
