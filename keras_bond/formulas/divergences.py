"""Divergences between distributions: over listed outcomes, or per token."""

from keras import ops

TINY = 1e-30


def kl_divergence(probs, other_probs):
    """`KL(p ‖ q) = Σ p log(p / q)` over listed outcomes.

    Args:
        probs: float tensor `(..., outcomes)`.
        other_probs: float tensor `(..., outcomes)`.

    Returns:
        float tensor `(...)`, in nats.
    """
    probs = ops.convert_to_tensor(probs)
    log_ratio = ops.log(ops.maximum(probs, TINY)) - ops.log(
        ops.maximum(other_probs, TINY)
    )
    return ops.sum(ops.where(probs > 0, probs * log_ratio, 0.0), axis=-1)


def jeffreys_divergence(probs, target_probs, jeffreys_beta=0.5):
    """`(1-β) KL(target ‖ p) + β KL(p ‖ target)`, generalized Jeffreys (eq. 11).

    BOND (Sessa et al., ICLR 2025, arXiv 2407.14622).

    Args:
        probs: float tensor `(..., outcomes)`, the policy.
        target_probs: float tensor `(..., outcomes)`, such as `π_BoN`.
        jeffreys_beta: float in [0, 1]. Denoted β in the paper.

    Returns:
        float tensor `(...)`, in nats.
    """
    forward = kl_divergence(target_probs, probs)
    backward = kl_divergence(probs, target_probs)
    return (1.0 - jeffreys_beta) * forward + jeffreys_beta * backward


def token_kls(logits, other_logits, temperature=1.0):
    """`KL(π(·|x, y_<t) ‖ π'(·|x, y_<t))` over the whole vocabulary.

    The sum over a completion drawn from π is an unbiased estimate of the
    sequence KL, with far less variance than the completion's log-ratio.

    Args:
        logits: float tensor `(..., vocabulary)` of π.
        other_logits: float tensor `(..., vocabulary)` of π'.
        temperature: float. Divides both. Defaults to 1.

    Returns:
        float32 tensor `(...)`, in nats per token.
    """
    log_probs, other_log_probs = (
        ops.log_softmax(ops.cast(x, "float32") / temperature, axis=-1)
        for x in (logits, other_logits)
    )
    difference = log_probs - other_log_probs
    return ops.sum(ops.exp(log_probs) * difference, axis=-1)
