"""J-BOND, algorithm 2 of BOND (Sessa et al., ICLR 2025, arXiv 2407.14622)."""

import math

from keras import ops

LOG_16 = math.log(16.0)


def outranks(
    rewards, other_rewards, tie_breakers=None, other_tie_breakers=None
):
    """Tells where `rewards` stand above `other_rewards`.

    Without tie-breakers equal rewards outrank nothing, the strict rule of
    eq. 17. With them, independent uniform numbers, equal rewards are ordered
    at random, which makes the completions strictly ordered as theorem 1 asks.

    Args:
        rewards: float tensor.
        other_rewards: float tensor that broadcasts against `rewards`.
        tie_breakers: float tensor of the shape of `rewards`, or `None`.
        other_tie_breakers: float tensor of the shape of `other_rewards`, or
            `None`.

    Returns:
        bool tensor of the broadcast shape.
    """
    above = ops.greater(rewards, other_rewards)
    if tie_breakers is None:
        return above
    tied = ops.equal(rewards, other_rewards)
    wins_tie = ops.greater(tie_breakers, other_tie_breakers)
    return ops.logical_or(above, ops.logical_and(tied, wins_tie))


def is_penalised(
    rewards, anchor_rewards, tie_breakers=None, anchor_tie_breakers=None
):
    """Tells which completions are worse than ALL anchor samples of the prompt.

    Args:
        rewards: float tensor `(batch,)`, one policy sample a prompt.
        anchor_rewards: float tensor `(batch, num_anchor_samples)`.
        tie_breakers: uniform tensor `(batch,)`, or `None` for the strict rule.
        anchor_tie_breakers: uniform tensor `(batch, num_anchor_samples)`, or
            `None`.

    Returns:
        bool tensor `(batch,)`.
    """
    if tie_breakers is not None:
        tie_breakers = ops.expand_dims(tie_breakers, -1)
    above = outranks(
        anchor_rewards,
        ops.expand_dims(rewards, -1),
        anchor_tie_breakers,
        tie_breakers,
    )
    return ops.all(above, axis=-1)


def jbond_reward(penalised):
    """`r_J(y) = -log 16 if r(y) < min(r(y1'), r(y2')) else 0` (eq. 17).

    With two anchor samples `E[r_J] = -log 16 (1 - p_le)²`, which equals
    `log p_le` at the median: `p_le = 1/2`. Eq. 17 has a strict `<`; the `<=`
    printed once in appendix A.4 is not followed.

    Args:
        penalised: bool tensor, see `is_penalised`.

    Returns:
        float32 tensor of the shape of `penalised`.
    """
    return -LOG_16 * ops.cast(penalised, "float32")


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
    contenders = ops.equal(rewards, highest)
    lottery = ops.where(contenders, tie_breakers, -ops.ones_like(tie_breakers))
    return ops.argmax(lottery, axis=-1)


def jbond_returns(rewards_j, log_probs, anchor_log_probs):
    """`R(y) = r_J(y) - (log π(y) - log π_anchor(y))`, line 3 of algorithm 2.

    Args:
        rewards_j: float tensor `(batch,)`, see `jbond_reward`.
        log_probs: float tensor `(batch,)`, `log π(y|x)` of the policy sample.
        anchor_log_probs: float tensor `(batch,)`, `log π_anchor(y|x)`.

    Returns:
        float tensor `(batch,)` without gradient.
    """
    return ops.stop_gradient(rewards_j - (log_probs - anchor_log_probs))
