"""Pooled estimators: policy and anchor samples serve both divergences, N = 2.

Given `log π` and `log π_anchor` of policy AND anchor samples, each sample can
represent either distribution by its balance-heuristic weight (Veach and Guibas,
"Optimally combining sampling techniques", SIGGRAPH 1995). For N = 2,
where `π_Bo2(y) = 2 π_anchor(y) E_{y'}[1{y' < y} + ½ 1{y' = y}]`.
"""

from keras import ops

from keras_bond.formulas.forward_kl import importance_ratios
from keras_bond.formulas.quantile_tables import harmonic_number


def wins(rewards):
    """`h_ij`: 1 where sample i beats j, ½ where they tie, 0 for itself.

    Args:
        rewards: float tensor `(batch, samples)`.

    Returns:
        float32 tensor `(batch, samples, samples)`.
    """
    own, others = ops.expand_dims(rewards, -1), ops.expand_dims(rewards, -2)
    beats = ops.cast(own > others, "float32")
    ties = ops.cast(ops.equal(own, others), "float32")
    return (beats + 0.5 * ties) * _others(rewards)


def _others(rewards):
    return 1.0 - ops.eye(rewards.shape[1], dtype="float32")


def pooled_forward_coefficients(rewards, log_ratios, num_policy_samples):
    """Coefficients of `∇ log π` that descend `KL(π_Bo2 ‖ π)`, unbiased.

    Each ordered pair of samples estimates the Best-of-2 distribution, weighted
    by the density of the mixture that all pairs are drawn from. A control
    variate of mean 0 is subtracted.

    Args:
        rewards: float tensor `(batch, P + k)`, policy samples first.
        log_ratios: float tensor `(batch, P + k)`, `log π - log π_anchor`.
        num_policy_samples: int, P.

    Returns:
        float32 tensor `(batch, P + k)`.
    """
    n, p = rewards.shape[1], num_policy_samples
    k = n - p
    ratios = importance_ratios(log_ratios)
    own, others = ops.expand_dims(ratios, -1), ops.expand_dims(ratios, -2)
    density = p * (p - 1) * own * others + p * k * (own + others) + k * (k - 1)
    imitated = ops.sum(2.0 * wins(rewards) / density, axis=-1)
    return imitated - policy_weights(ratios, p) / n


def policy_weights(ratios, num_policy_samples):
    """`n ρ / (P ρ + k)`: weight of each sample as a policy sample."""
    n, p = ratios.shape[1], num_policy_samples
    return ops.divide(n * ratios, p * ratios + (n - p))


def pooled_returns(rewards, log_ratios, num_policy_samples):
    """`R = H_c - H_K - log ρ` with weighted counts.

    The harmonic log-quantile of a sample among all others, each counting as
    `n / (P ρ + k)` anchor samples.

    Args:
        rewards: float tensor `(batch, P + k)`, policy samples first.
        log_ratios: float tensor `(batch, P + k)`, `log π - log π_anchor`.
        num_policy_samples: int, P.

    Returns:
        float32 tensor `(batch, P + k)`.
    """
    ratios = importance_ratios(log_ratios)
    anchor_weights = policy_weights(ratios, num_policy_samples) / ratios
    weights = ops.expand_dims(anchor_weights, -2)
    beaten = ops.sum(weights * wins(rewards), axis=-1)
    count = ops.sum(weights * _others(rewards), axis=-1)
    harmonic = harmonic_number(beaten) - harmonic_number(count)
    return ops.subtract(harmonic, log_ratios)


def pooled_backward_coefficients(rewards, log_ratios, num_policy_samples, mask):
    """Coefficients of `∇ log π` that descend `KL(π ‖ π_Bo2)`.

    `ρ̃ (R - B) / n`, with `ρ̃` the balance-heuristic weight of a policy sample
    and B half the weighted mean of the prompt's other samples and half that of
    the other prompts'.

    Args:
        rewards: float tensor `(batch, P + k)`, policy samples first.
        log_ratios: float tensor `(batch, P + k)`, `log π - log π_anchor`.
        num_policy_samples: int, P.
        mask: bool tensor `(batch,)`, False for prompts to ignore.

    Returns:
        float32 tensor `(batch, P + k)`.
    """
    weights = policy_weights(importance_ratios(log_ratios), num_policy_samples)
    returns = pooled_returns(rewards, log_ratios, num_policy_samples)
    by_prompt, by_batch = _weighted_others(weights * returns, weights, mask)
    advantages = returns - 0.5 * by_prompt - 0.5 * by_batch
    return weights * advantages / rewards.shape[1]


def _weighted_others(products, weights, mask):
    """Weighted means over a prompt's other samples, and over other prompts."""
    kept = ops.expand_dims(ops.cast(mask, "float32"), -1)
    total, size = (
        ops.sum(ops.where(kept > 0, values, 0.0), axis=1, keepdims=True)
        for values in (products, weights)
    )
    by_prompt = (total - products) / ops.maximum(size - weights, 1e-12)
    others = ops.sum(size) - size
    by_batch = (ops.sum(total) - total) / ops.maximum(others, 1e-12)
    return by_prompt, ops.where(others > 0, by_batch, by_prompt)
