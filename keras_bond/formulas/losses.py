"""The three losses of J-BOND, one number a prompt, and their weighted sum.

Only their gradients matter: the value of a score-function loss says nothing.
Source: BOND (Sessa et al., ICLR 2025, arXiv 2407.14622), algorithm 2.
"""

from keras import ops


def forward_kl_loss(best_log_probs):
    """`-log π(y_best)`: the forward part, supervised on Best-of-N (eq. 13).

    Its gradient is an unbiased estimate of `∇ KL(π_BoN ‖ π)` when `y_best` is
    distributed as the Best-of-N pick.

    Args:
        best_log_probs: float tensor `(batch,)`.

    Returns:
        float tensor `(batch,)`.
    """
    return -best_log_probs


def policy_gradient_loss(log_probs, advantages):
    """`-log π(y) · sg(R - B)`: the backward part, REINFORCE (eq. 15).

    Args:
        log_probs: float tensor `(batch,)`, with gradient.
        advantages: float tensor `(batch,)`; its gradient is stopped here.

    Returns:
        float tensor `(batch,)`.
    """
    return -log_probs * ops.stop_gradient(advantages)


def score_function_kl_loss(log_probs, anchor_log_probs):
    """`log π(y) · sg(log π(y) - log π_anchor(y))`: descends `KL(π ‖ π_anchor)`.

    The regulariser of eq. 19. Algorithm 2 prints the opposite sign, which
    would RAISE the divergence; the minimising sign is implemented. The
    log-ratio itself as a loss would have no gradient in expectation.

    Args:
        log_probs: float tensor `(batch,)`, with gradient, of samples of `π`.
        anchor_log_probs: float tensor `(batch,)`.

    Returns:
        float tensor `(batch,)`.
    """
    return log_probs * ops.stop_gradient(log_probs - anchor_log_probs)


def jeffreys_loss(forward, backward, regulariser, jeffreys_beta, kl_weight):
    """`(1-β)·forward + β·backward + γ·regulariser`, line 5 of algorithm 2.

    The generalised Jeffreys divergence of eq. 11 with weight β, and γ times
    the regulariser.

    Args:
        forward: float tensor, see `forward_kl_loss`.
        backward: float tensor, see `policy_gradient_loss`.
        regulariser: float tensor, see `score_function_kl_loss`.
        jeffreys_beta: float in [0, 1]. Denoted β in the paper.
        kl_weight: float, at least 0. Denoted γ in the paper.

    Returns:
        float tensor.
    """
    divergence = (1.0 - jeffreys_beta) * forward + jeffreys_beta * backward
    return divergence + kl_weight * regulariser
