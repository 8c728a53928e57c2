"""Estimators of the forward gradient: weights of the anchor samples.

Each returns coefficients `c_i` of `∇ log π(y_i)`; the loss is
`-Σ_i sg(c_i) log π(y_i)`, see `weighted_likelihood_loss`. The exact gradient
is `-E_{y ~ π_BoN}[∇ log π(y)]` (BOND, arXiv 2407.14622, eq. 13).
"""

from keras import ops

from keras_bond.formulas.averages import leave_one_out_mean
from keras_bond.formulas.jbond import best_sample

# Keeps exp() of a log-ratio finite in float32.
LARGEST_LOG_RATIO = 20.0


def best_sample_weights(anchor_rewards, n, tie_breakers=None):
    """1 for the best of the first n anchor samples, 0 for the others.

    The paper's estimator: supervised learning on Best-of-N samples.

    Args:
        anchor_rewards: float tensor `(batch, k)`.
        n: int, at most k.
        tie_breakers: uniform tensor `(batch, k)`, or `None` for the first of
            the tied.

    Returns:
        float32 tensor `(batch, k)`.
    """
    if tie_breakers is not None:
        tie_breakers = tie_breakers[:, :n]
    best = best_sample(anchor_rewards[:, :n], tie_breakers)
    return ops.one_hot(best, anchor_rewards.shape[1], dtype="float32")


def importance_ratios(log_ratios):
    """`ρ = π(y) / π_anchor(y)`, clipped to stay finite, without gradient.

    Args:
        log_ratios: float tensor, `log π(y) - log π_anchor(y)`.

    Returns:
        float32 tensor of the same shape.
    """
    log_ratios = ops.clip(log_ratios, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return ops.stop_gradient(ops.exp(log_ratios))


def control_variate_scale(weights, ratios, mask):
    """`a* = min(1, k Σ w ρ / Σ ρ²)`, estimated on the OTHER prompts.

    The scale of the control variate that minimizes the variance of
    `(w_i - a ρ_i / k) ∇ log π(y_i)`. It is independent
    of the prompt's own samples and adds no bias. It is 1 for a prompt without
    others.

    Args:
        weights: float tensor `(batch, k)`, `w`.
        ratios: float tensor `(batch, k)`, `ρ`.
        mask: bool tensor `(batch,)`, False for prompts to ignore.

    Returns:
        float32 tensor `(batch, 1)` in [0, 1].
    """
    products = leave_one_out_mean(
        ops.sum(ops.multiply(weights, ratios), axis=1), mask
    )
    squares = leave_one_out_mean(ops.sum(ops.square(ratios), axis=1), mask)
    scale = weights.shape[1] * products / ops.maximum(squares, 1e-12)
    scale = ops.where(squares > 0, ops.clip(scale, 0.0, 1.0), 1.0)
    return ops.expand_dims(scale, -1)


def control_variate_coefficients(weights, log_ratios, mask):
    """`w_i - a ρ_i / k`: the expectation of `w_i` with less variance.

    `E_anchor[ρ ∇ log π] = E_π[∇ log π] = 0`, so the second term leaves the
    expectation as it is. Where all rewards tie and the policy equals the
    anchor, the coefficients are exactly 0 and the policy does not drift.

    Args:
        weights: float tensor `(batch, k)` that sums to 1 in each row, such as
            `best_of_n_weights`.
        log_ratios: float tensor `(batch, k)`, `log π - log π_anchor`.
        mask: bool tensor `(batch,)`, False for prompts to ignore.

    Returns:
        float32 tensor `(batch, k)`.
    """
    ratios = importance_ratios(log_ratios)
    scale = control_variate_scale(weights, ratios, mask)
    return ops.subtract(weights, scale * ratios / weights.shape[1])
