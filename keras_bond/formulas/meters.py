"""How far a policy is along the Best-of-N curve: closed forms without ties.

Where rewards order the completions strictly, the quantile `u = p_le(y)` of a
Best-of-N pick is the largest of N uniform numbers: its law is `Beta(N, 1)` for
every prompt and reward. Everything here follows from that law (theorem 1 of
BOND, Sessa et al., ICLR 2025, arXiv 2407.14622) and holds for real N: above 1
for a policy better than its start, below 1 for a worse one.
"""

import math

# A mean of rounded numbers may pass its exact bound by this much.
ROUNDING = 1e-6


def continuous_best_of_n_kl(n):
    """`KL(π_BoN ‖ π_ref) = log N - (N-1)/N`, in nats, without ties.

    It is also the least KL to the start at which any policy reaches Best-of-N's
    mean log-quantile, `E[log u] = -1/N`: for every policy π with that mean,
    `KL(π ‖ π_ref) = log N - (N-1)/N + KL(π ‖ π_BoN)`.

    Args:
        n: float, at least 0. Infinity and 0 are infinitely far.

    Returns:
        float.

    Raises:
        ValueError: if `n` is negative.
    """
    if not n >= 0:
        raise ValueError(
            f"`n` must not be negative: it counts samples. Received: n={n}"
        )
    return math.inf if n == 0 else math.log(n) - 1.0 + 1.0 / n


def n_from_win_rate(win_rate):
    """`N = w / (1 - w)`, for Best-of-N beats one sample with `w = N / (N+1)`.

    Args:
        win_rate: float in [0, 1], against single samples of the start, ties
            counting one half.

    Returns:
        float, infinity for a policy that always wins.

    Raises:
        ValueError: if `win_rate` is not in [0, 1].
    """
    if not 0 <= win_rate <= 1:
        raise ValueError(
            "`win_rate` must be between 0 and 1, a share and not a percentage. "
            f"Received: win_rate={win_rate}"
        )
    return math.inf if win_rate == 1 else win_rate / (1.0 - win_rate)


def n_from_log_quantile(mean_log_quantile):
    """`N = -1 / E[log u]`, for `E[log u] = -1/N` under Best-of-N.

    Args:
        mean_log_quantile: float, at most 0: mean of the log of the exact
            quantile `p_le` of the policy's samples under the start. From few
            samples of the start use `n_from_harmonic`, which is not biased by
            the logarithm.

    Returns:
        float, infinity for a mean of 0.

    Raises:
        ValueError: if `mean_log_quantile` is positive.
    """
    if not mean_log_quantile <= 0:
        raise ValueError(
            "`mean_log_quantile` must be at most 0, the logarithm of a "
            f"probability. Received: mean_log_quantile={mean_log_quantile}"
        )
    return math.inf if mean_log_quantile == 0 else -1.0 / mean_log_quantile


def expected_harmonic(n, k):
    """`E[H_c - H_k] = -(1/N)(1 - 1/C(N+k, k))` under Best-of-N.

    `c` of `k` samples of the start lie below the pick, and
    `H_c = 1 + 1/2 + ... + 1/c`. `H_c - H_k` is unbiased for the first k terms
    of `log u = -Σ_m (1-u)^m / m`, whose means are `-1 / (m C(N+m, m))`.

    Args:
        n: float, above 0.
        k: int, at least 1. Samples of the start a prompt.

    Returns:
        float in (-H_k, 0).
    """
    log_binomial = (
        math.lgamma(n + k + 1) - math.lgamma(n + 1) - math.lgamma(k + 1)
    )
    return math.expm1(-log_binomial) / n


def n_from_harmonic(mean_harmonic, k):
    """The N whose `expected_harmonic` is the given mean, by bisection.

    For `k = 1` it is `n_from_win_rate` of `1 + mean_harmonic`, for `k → ∞` it
    is `n_from_log_quantile`.

    Args:
        mean_harmonic: float in [-H_k, 0], mean of `H_c - H_k` over samples of
            the policy (see `harmonic_table`).
        k: int, at least 1. Samples of the start a prompt.

    Returns:
        float, infinity for a mean of 0.

    Raises:
        ValueError: if `mean_harmonic` is not in [-H_k, 0].
    """
    lowest = -math.fsum(1.0 / i for i in range(1, k + 1))
    if not lowest - ROUNDING <= mean_harmonic <= ROUNDING:
        raise ValueError(
            "`mean_harmonic` must be between -(1 + 1/2 + ... + 1/k) and 0: "
            "give the `k` that it was computed with. "
            f"Received: mean_harmonic={mean_harmonic}, k={k}"
        )
    if mean_harmonic >= 0:
        return math.inf
    low, high = 0.0, -1.0 / mean_harmonic
    for _ in range(50):
        middle = (low + high) / 2
        if expected_harmonic(middle, k) < mean_harmonic:
            low = middle
        else:
            high = middle
    return low
