"""Correlation of rewards and log-ratios within prompts: a meter of waste.

Let `u` be the quantile of a sample's reward under the anchor. Near the anchor,
a policy with log-ratio `ℓ = log π - log π_anchor` wins against it with
probability `1/2 + Cov(u, ℓ)`, at a KL of `Var(ℓ) / 2`. For a given win rate the
KL is least where `ℓ` is linear in `u`, and is `1 / corr²(u, ℓ)` times as large
elsewhere. Best-of-N, with `ℓ = (N-1) log u`, has a correlation of `√3 / 2`.
"""

from keras import ops

from keras_bond.formulas.quantile_tables import count_beaten

# By how much log-ratios have to exceed rounding: twice, here squared.
ABOVE_ROUNDING = 4.0


def mid_ranks(rewards):
    """Twice the number of others that each sample beats, plus one per tie.

    Args:
        rewards: float tensor `(batch, samples)`, or ranks.

    Returns:
        float32 tensor of the same shape, of integers.
    """
    beaten, tied = count_beaten(rewards, rewards)
    # Each sample ties with itself.
    return ops.cast(2 * beaten + tied - 1, "float32")


def rank_correlation(ranks, log_ratios, rounding, mask):
    """`Σ Δu Δℓ / √(Σ Δu² Σ Δℓ²)`, with deviations from the mean of a prompt.

    Ranks among n samples without ties multiply the correlation with the exact
    quantile by `√(n / (n+1))`: Best-of-N has 0.77 for 4 samples, and 0.82 for
    8.

    Args:
        ranks: float tensor `(batch, P)` of integers: `mid_ranks`, among all
            samples of the prompt, of P samples of the policy.
        log_ratios: float tensor of the same shape, `log π - log π_anchor`.
        rounding: float tensor of the same shape: the error of `log π`, known
            from computing it twice.
        mask: bool tensor `(batch,)`, False for prompts to ignore.

    Returns:
        float32 scalar in [-1, 1]; NaN if no two samples of a prompt differ in
        rank, or the log-ratios are not above rounding: the policy is still
        the anchor.
    """
    u, ratio, error = (
        _deviations(x, mask) for x in (ranks, log_ratios, rounding)
    )
    variances = [ops.sum(ops.square(x)) for x in (u, ratio, error)]
    is_known = ops.logical_and(
        variances[0] > 0, variances[1] > ABOVE_ROUNDING * variances[2]
    )
    product = ops.sqrt(variances[0]) * ops.sqrt(variances[1])
    correlation = ops.sum(u * ratio) / ops.where(is_known, product, 1.0)
    return ops.where(is_known, correlation, float("nan"))


def _deviations(values, mask):
    """`P` times the deviations from the mean, exact for integers."""
    kept = ops.where(ops.expand_dims(mask, -1), values, 0.0)
    return values.shape[1] * kept - ops.sum(kept, axis=1, keepdims=True)
