"""Where a policy stands against Best-of-N of the policy it started from."""

import math

import numpy as np
from keras import ops

from keras_bond import formulas
from keras_bond.arguments import check_count
from keras_bond.arguments import check_list
from keras_bond.evaluation.checks import as_rewards

# Above the rounding of float32 means.
TOLERANCE = 1e-5


def best_of_n_frontier(rewards, ns=(1, 2, 4, 8)):
    """Exact reward, win rate and KL of Best-of-N, for every N from one pool.

    The order statistics of the pool are unbiased for reward and win rate (see
    `keras_bond.formulas.best_of_n_weights`); the KL puts the pool's quantiles
    in for the exact ones.

    Args:
        rewards: float array `(prompts, pool)`: rewards of independent samples
            of the starting policy, `pool` above the largest N.
        ns: tuple of int.

    Returns:
        list of dicts with `n`, `reward`, `win_rate` (against one sample of
        the start, ties one half) and `kl` (to the start, in nats).

    Raises:
        ValueError: if a reward is not finite, or an N is not below the size
            of the pool.
    """
    rewards = as_rewards(rewards)
    check_list("ns", ns, "integers")
    for n in ns:
        check_count("ns", n, 1)
    pool = rewards.shape[1]
    if max(ns, default=0) >= pool:
        raise ValueError(
            "`rewards` must hold more samples a prompt than the largest N. "
            f"Received: a pool of {pool} for ns={tuple(ns)}"
        )
    rewards = ops.convert_to_tensor(rewards)
    return [_best_of_n(rewards, n) for n in ns]


def _best_of_n(rewards, n):
    weights = formulas.best_of_n_weights(rewards, n)
    best = ops.sum(weights * rewards, axis=1)
    return {
        "n": n,
        "reward": float(ops.mean(best)),
        "win_rate": float(ops.mean(formulas.best_of_n_win_rate(rewards, n))),
        "kl": float(ops.mean(formulas.best_of_n_kl(rewards, n))),
    }


def excess_kl(frontier, kl, win_rate=None, reward=None):
    """KL that a policy spends above Best-of-N that does equally well.

    0 on the Best-of-N curve, positive above it. Without ties the KL at equal
    win rate is exact for the real N = w / (1 - w): `log N - (N-1)/N`. With
    ties, and at equal reward, it is interpolated between the rows of the
    frontier: linearly in the ROOT of the KL, for near the start the KL grows
    as the square of the gain. Rows for N = 1, 2, 4, 8 leave an error of some
    5 per cent of the KL, next to the start of up to 20; more rows leave less.

    Args:
        frontier: list of dicts, see `best_of_n_frontier`.
        kl: float. Measured KL of the policy to the start, in nats a sequence.
        win_rate: float, against single samples of the start.
        reward: float, mean reward. Give either this or `win_rate`.

    Returns:
        float, in nats. Below 0 from noise, or because another policy than
        Best-of-N reaches this win rate or reward with less KL.

    Raises:
        ValueError: if not exactly one of `win_rate` and `reward` is given, or
            if it is out of the range of the frontier.

    Example:

    >>> frontier = best_of_n_frontier([[1, 2, 3, 4], [5, 6, 7, 8]], ns=(1, 3))
    >>> round(excess_kl(frontier, kl=0.25, win_rate=2 / 3), 3)
    0.057
    """
    if (win_rate is None) == (reward is None):
        raise ValueError(
            "Exactly one of `win_rate` and `reward` must be given, to compare "
            f"with. Received: win_rate={win_rate}, reward={reward}"
        )
    if reward is not None:
        return kl - _interpolated_kl(frontier, "reward", reward)
    best_of_n_kl = _interpolated_kl(frontier, "win_rate", win_rate)
    if _has_no_ties(frontier):
        n = formulas.n_from_win_rate(win_rate)
        best_of_n_kl = formulas.continuous_best_of_n_kl(n)
    return kl - best_of_n_kl


def _has_no_ties(frontier):
    """Without ties the best of n beats one sample with n / (n + 1)."""
    return all(
        abs(row["win_rate"] - row["n"] / (row["n"] + 1)) < TOLERANCE
        for row in frontier
    )


def _interpolated_kl(frontier, name, value):
    rows = sorted(frontier, key=lambda row: row["n"])
    axis = [row[name] for row in rows]
    slack = TOLERANCE * max(1.0, abs(axis[0]), abs(axis[-1]))
    if not axis[0] - slack <= value <= axis[-1] + slack:
        raise ValueError(
            f"`{name}` must lie on the frontier, between {axis[0]:.4g} and "
            f"{axis[-1]:.4g}: give `best_of_n_frontier` larger `ns`, or "
            f"`ns=(1, ...)` for the start. Received: {name}={value}"
        )
    roots = [math.sqrt(max(row["kl"], 0.0)) for row in rows]
    return float(np.interp(value, axis, roots)) ** 2
