"""Estimators of the forward part: which anchor samples are imitated, how much.

Each returns coefficients `c_i` of `∇ log π(y_i)`; the loss is
`-Σ_i sg(c_i) log π(y_i)`, see `weighted_likelihood_loss`. The exact gradient
is `-E_{y ~ π_BoN}[∇ log π(y)]` (BOND, arXiv 2407.14622, eq. 13).
"""

from keras import ops

from keras_bond.formulas.averages import leave_one_out_mean
from keras_bond.formulas.jbond import best_sample

# Keeps exp() of a log-ratio finite in float32; never reached in a sane run.
LARGEST_LOG_RATIO = 20.0


def best_sample_weights(anchor_rewards, n, tie_breakers=None):
    """1 for the best of the first n anchor samples, 0 for the others.

    The paper's choice: supervised learning on Best-of-N picks.

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
    """`ρ = π(y) / π_anchor(y)`, kept finite and without gradient.

    Args:
        log_ratios: float tensor, `log π(y) - log π_anchor(y)`.

    Returns:
        float32 tensor of the same shape.
    """
    log_ratios = ops.clip(log_ratios, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return ops.stop_gradient(ops.exp(log_ratios))


def control_variate_scale(weights, ratios, mask):
    """`a* = min(1, k Σ w ρ / Σ ρ²)`, from the OTHER prompts of the batch.

    The scale of the control variate that minimises the variance of
    `(w_i - a ρ_i / k) ∇ log π(y_i)`. Being independent of the prompt's own
    samples it adds no bias. A prompt without others gets 1.

    Args:
        weights: float tensor `(batch, k)`, `w`.
        ratios: float tensor `(batch, k)`, `ρ`.
        mask: bool tensor `(batch,)`, False for prompts that dropped out.

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
    """`w_i - a ρ_i / k`: the same expectation as `w_i`, less variance.

    `E_anchor[ρ ∇ log π] = E_π[∇ log π] = 0`, so the second part changes no
    expectation. Where all rewards tie and the policy is the anchor the
    coefficients are exactly 0, so that nothing drifts.

    Args:
        weights: float tensor `(batch, k)` that sums to 1 in each row, such as
            `best_of_n_weights`.
        log_ratios: float tensor `(batch, k)`, `log π - log π_anchor`.
        mask: bool tensor `(batch,)`, False for prompts that dropped out.

    Returns:
        float32 tensor `(batch, k)`.
    """
    ratios = importance_ratios(log_ratios)
    scale = control_variate_scale(weights, ratios, mask)
    return ops.subtract(weights, scale * ratios / weights.shape[1])
