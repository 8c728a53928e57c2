"""The exact Best-of-N distribution of a policy with listed completions.

Source: BOND (Sessa et al., ICLR 2025, arXiv 2407.14622), theorem 1 and eq. 8.
"""

from keras import ops

# Rounding must not let p_lt reach p_le, where the ratio is 0/0: its limit is N.
NEARLY_EQUAL = -1e-6
TINY = 1e-30


def quantiles(probs, rewards):
    """`p_le(y) = P[r(y') <= r(y)]` and `p_lt(y) = P[r(y') < r(y)]` (eq. 2).

    Args:
        probs: float tensor `(..., completions)`, `π_ref(y)`, summing to 1.
        rewards: float tensor `(..., completions)`.

    Returns:
        `(p_le, p_lt)`, float tensors `(..., completions)`.
    """
    own = ops.expand_dims(rewards, -1)
    others = ops.expand_dims(rewards, -2)
    weights = ops.expand_dims(probs, -2)
    p_le = ops.sum(ops.where(others <= own, weights, 0.0), axis=-1)
    p_lt = ops.sum(ops.where(others < own, weights, 0.0), axis=-1)
    return p_le, p_lt


def log_best_of_n_ratio(log_p_le, log_p_lt, n):
    """`log(π_BoN / π_ref) = log[(p_le^N - p_lt^N) / (p_le - p_lt)]`.

    Theorem 1 with ties broken uniformly at random. It equals the paper's
    `p_le^(N-1) · Σ_{i=1..N} (p_lt/p_le)^(i-1)`, here for any real N >= 1.

    Args:
        log_p_le: float tensor, `log p_le`.
        log_p_lt: float tensor of the same shape, `log p_lt`, `-inf` for 0.
        n: float, at least 1. Denoted N in the paper.

    Returns:
        float tensor of the same shape, in nats.
    """
    log_p_le = ops.convert_to_tensor(log_p_le)
    log_ratio = ops.subtract(log_p_lt, log_p_le)
    log_ratio = ops.clip(log_ratio, -80.0, NEARLY_EQUAL)
    factor_b = ops.expm1(n * log_ratio) / ops.expm1(log_ratio)
    return (n - 1.0) * log_p_le + ops.log(factor_b)


def best_of_n_distribution(probs, rewards, n):
    """`π_BoN(y)` for every listed completion (theorem 1, ties at random).

    Args:
        probs: float tensor `(..., completions)`, `π_ref(y)`.
        rewards: float tensor `(..., completions)`.
        n: float, at least 1. Denoted N in the paper.

    Returns:
        float tensor `(..., completions)` that sums to 1.
    """
    probs = ops.convert_to_tensor(probs)
    p_le, p_lt = quantiles(probs, rewards)
    log_p_le = ops.log(ops.maximum(p_le, TINY))
    log_p_lt = ops.log(ops.maximum(p_lt, TINY))
    return probs * ops.exp(log_best_of_n_ratio(log_p_le, log_p_lt, n))


def bond_reward(log_p_le, log_p_lt, n, second_term=True):
    """`r_BOND = log p_le + 1/(N-1) · log Σ_{i=1..N} (p_lt/p_le)^(i-1)` (eq. 8).

    With KL weight `β_BOND = 1/(N-1)` its optimum is exactly `π_BoN`. The
    authors leave out the second term in practice. The text after eq. 15 says
    `r_BOND = p̂`, where `log p̂` is meant.

    Args:
        log_p_le: float tensor, `log p_le`.
        log_p_lt: float tensor of the same shape, `log p_lt`.
        n: float, above 1. Denoted N in the paper.
        second_term: bool. Whether to keep the second term. Defaults to True.

    Returns:
        float tensor of the same shape.
    """
    if not second_term:
        return log_p_le
    return log_best_of_n_ratio(log_p_le, log_p_lt, n) / (n - 1.0)
