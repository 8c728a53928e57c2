"""J-BOND, algorithm 2 of BOND (Sessa et al., ICLR 2025, arXiv 2407.14622)."""

import math

from keras import ops

from keras_bond.formulas.quantile_tables import count_beaten

LOG_16 = math.log(16.0)


def is_penalized(rewards, anchor_rewards, tie_breakers=None):
    """Which completions are worse than ALL anchor samples of their prompt.

    Without tie-breakers an equal reward is not worse, as in the strict rule of
    eq. 17. Tie-breakers, independent uniform numbers, order equal rewards at
    random, so that completions are strictly ordered as theorem 1 assumes.

    Args:
        rewards: float tensor `(batch, samples)`.
        anchor_rewards: float tensor `(batch, num_anchor_samples)`.
        tie_breakers: pair of uniform tensors of these two shapes, or `None`
            for the strict rule.

    Returns:
        bool tensor `(batch, samples)`.
    """
    beaten, tied = count_beaten(rewards, anchor_rewards, tie_breakers)
    return ops.equal(beaten + tied, 0)


def jbond_reward(penalized):
    """`r_J(y) = -log 16 if r(y) < min(r(y1'), r(y2')) else 0` (eq. 17).

    With two anchor samples `E[r_J] = -log 16 (1 - p_le)²`, which equals
    `log p_le` at the median: `p_le = 1/2`. Eq. 17 has a strict `<`, which is
    followed here; appendix A.4 prints `<=` once. `pairs_table` in
    `quantile_tables` generalizes the rule to more anchor samples.

    Args:
        penalized: bool tensor, see `is_penalized`.

    Returns:
        float32 tensor of the shape of `penalized`.
    """
    return -LOG_16 * ops.cast(penalized, "float32")


def best_sample(rewards, tie_breakers=None):
    """Index of the sample of highest reward in each row.

    Args:
        rewards: float tensor `(batch, samples)`.
        tie_breakers: uniform tensor `(batch, samples)`, or `None` to take the
            first of the tied ones.

    Returns:
        int32 tensor `(batch,)`.
    """
    if tie_breakers is None:
        return ops.argmax(rewards, axis=-1)
    highest = ops.max(rewards, axis=-1, keepdims=True)
    is_highest = ops.equal(rewards, highest)
    masked = ops.where(is_highest, tie_breakers, -ops.ones_like(tie_breakers))
    return ops.argmax(masked, axis=-1)


def backward_returns(backward_rewards, log_ratios):
    """`R(y) = (N-1) r_BOND(y) - (log π(y) - log π_anchor(y))` (eq. 15).

    Line 3 of algorithm 2 with `r_J` for `(N-1) r_BOND`.

    Args:
        backward_rewards: float tensor `(batch, samples)`, an estimate of
            `(N-1) r_BOND`, such as `log_best_of_n_ratio`.
        log_ratios: float tensor `(batch, samples)`, `log π - log π_anchor`.

    Returns:
        float tensor `(batch, samples)` without gradient.
    """
    return ops.stop_gradient(ops.subtract(backward_rewards, log_ratios))
