"""Best-of-N statistics from one pool of independent samples per prompt.

A pool of M samples gives every Best-of-N with N <= M: the average over all
subsets of size N (an order statistic) is unbiased and needs no new samples.
"""

import math

from keras import ops


def ranks(rewards):
    """Counts the samples of the pool below, and not above, each sample.

    Args:
        rewards: float tensor `(prompts, pool)`.

    Returns:
        `(num_le, num_lt)`, float32 tensors `(prompts, pool)`: the number of
        samples with reward `<=` (itself included) and `<` its own.
    """
    own = ops.expand_dims(rewards, -1)
    others = ops.expand_dims(rewards, -2)
    num_le = ops.sum(ops.cast(others <= own, "float32"), axis=-1)
    num_lt = ops.sum(ops.cast(others < own, "float32"), axis=-1)
    return num_le, num_lt


def subset_fraction(counts, pool, n):
    """`C(count, n) / C(pool, n)`: the share of n-subsets of the pool
    that lie within `count` given samples.

    Args:
        counts: float tensor of integers in [0, pool].
        pool: int. Size of the pool.
        n: int. Size of the subsets, at most `pool`.

    Returns:
        float32 tensor of the shape of `counts`.
    """
    fraction = ops.ones_like(counts)
    for i in range(n):
        fraction = fraction * ops.maximum(counts - i, 0.0) / (pool - i)
    return fraction


def check_n(n, largest):
    """Checks that a pool is large enough for Best-of-n.

    Raises:
        ValueError: if `n` is not in [1, largest].
    """
    if not 1 <= n <= largest:
        raise ValueError(
            f"`n` must be between 1 and {largest} for a pool of this size: "
            f"draw more samples per prompt. Received: n={n}"
        )


def best_of_n_weights(rewards, n):
    """Probability that each sample is the best of n drawn from its pool.

    `w_i = [C(le_i, n) - C(lt_i, n)] / (le_i - lt_i) / C(pool, n)`, ties broken
    uniformly. `Σ_i w_i = 1`, and `E[Σ_i w_i f(y_i)] = E_BoN[f]` exactly.

    Args:
        rewards: float tensor `(prompts, pool)`.
        n: int in [1, pool].

    Returns:
        float32 tensor `(prompts, pool)`.

    Raises:
        ValueError: if `n` is not in [1, pool].
    """
    pool = rewards.shape[-1]
    check_n(n, pool)
    num_le, num_lt = ranks(rewards)
    mass = subset_fraction(num_le, pool, n) - subset_fraction(num_lt, pool, n)
    return mass / (num_le - num_lt)


def best_of_n_win_rate(rewards, n):
    """Win rate of the best of n against one more sample, ties counting ½.

    Unbiased: it averages over all choices of n samples and one other from the
    pool. Without ties it is `n / (n + 1)`.

    Args:
        rewards: float tensor `(prompts, pool)`.
        n: int in [1, pool - 1].

    Returns:
        float32 tensor `(prompts,)`.

    Raises:
        ValueError: if `n` is not in [1, pool - 1].
    """
    pool = rewards.shape[-1]
    check_n(n, pool - 1)
    num_le, num_lt = ranks(rewards)
    not_above = subset_fraction(num_le - 1, pool - 1, n)
    below = subset_fraction(num_lt, pool - 1, n)
    return ops.mean(1.0 - 0.5 * (not_above + below), axis=-1)


def best_of_n_kl(rewards, n):
    """`KL(π_BoN ‖ π_ref)` of theorem 1, ties broken at random, in nats.

    `E_BoN[log((p_le^N - p_lt^N) / (p_le - p_lt))]`, with the quantiles of the
    pool in place of the exact ones. Without ties the result is below
    `log N - (N-1)/N` by about `(N / pool)² / 24`. Ties make the KL smaller and
    the estimate random; its mean is then usually too low, at worst by about
    `0.4 N / pool`, when about 1 answer in N is among the best.

    Args:
        rewards: float tensor `(prompts, pool)`.
        n: int, at least 1.

    Returns:
        float32 tensor `(prompts,)`.
    """
    pool = rewards.shape[-1]
    num_le, num_lt = ranks(rewards)
    mass = (num_le / pool) ** n - (num_lt / pool) ** n
    ratio = mass * pool / (num_le - num_lt)
    tiny = ops.full_like(ratio, math.exp(-80.0))
    return ops.mean(ratio * ops.log(ops.maximum(ratio, tiny)), axis=-1)
