"""REINFORCE and BoNBoN, other methods that learn from the same samples."""

import math

from keras import ops


def reinforce_returns(rewards, log_ratios, kl_weight):
    """`R = r(y) - β_RL (log π(y) - log π_ref(y))`: KL-regularized REINFORCE.

    The baseline of BOND (Sessa et al., ICLR 2025, arXiv 2407.14622, section 6).

    Args:
        rewards: float tensor `(batch, samples)`.
        log_ratios: float tensor `(batch, samples)`, `log π - log π_ref`.
        kl_weight: float, at least 0. Denoted β_RL in the paper.

    Returns:
        float tensor `(batch, samples)` without gradient.
    """
    penalty = ops.multiply(kl_weight, log_ratios)
    return ops.stop_gradient(ops.subtract(rewards, penalty))


def bonbon_margin(n):
    """`(N-1) Σ_{i=1..N-1} 1/i`: the log-ratio of best over worst of N.

    `E[log(π_BoN/π_ref)(best) - log(π_BoN/π_ref)(worst)]`, which is
    `1 / (2 β*_N)` of BoNBoN (Gui et al., NeurIPS 2024, arXiv 2406.00832).

    Args:
        n: int, at least 2.

    Returns:
        float, in nats.
    """
    return (n - 1) * math.fsum(1.0 / i for i in range(1, n))


def bonbon_contrast_coefficients(best, worst, log_ratios):
    """Coefficients of `∇ log π` that descend BoNBoN's `(Δ - margin)²`.

    `Δ` is the log-ratio of the best sample of the reference minus that of the
    worst, and the margin its mean under Best-of-N: `2 (margin - Δ)` for the
    best sample and the opposite for the worst (Gui et al., NeurIPS 2024, arXiv
    2406.00832).

    Args:
        best: float tensor `(batch, n)`, 1 for the best sample, else 0.
        worst: float tensor `(batch, n)`, 1 for the worst sample, else 0.
        log_ratios: float tensor `(batch, n)`, `log π - log π_ref`.

    Returns:
        float tensor `(batch, n)` without gradient.
    """
    contrast = ops.subtract(best, worst)
    delta = ops.sum(contrast * log_ratios, axis=1, keepdims=True)
    gap = bonbon_margin(log_ratios.shape[1]) - delta
    return ops.stop_gradient(2.0 * gap * contrast)
