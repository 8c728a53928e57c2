"""Losses of drawn completions, one number a prompt.

Only their gradients matter: the value of a score-function loss says nothing.
"""

from keras import ops


def weighted_likelihood_loss(log_probs, coefficients):
    """`-Σ_i sg(c_i) · log π(y_i)`: what every estimator here comes down to.

    With `c = 1` for a Best-of-N pick it is the forward part of BOND (Sessa et
    al., ICLR 2025, arXiv 2407.14622, eq. 13), with the advantages `R - B` of
    policy samples its backward part, REINFORCE (eq. 15).

    Args:
        log_probs: float tensor `(batch, samples)`, with gradient.
        coefficients: float tensor of the same shape; its gradient is stopped
            here.

    Returns:
        float tensor `(batch,)`.
    """
    return -ops.sum(ops.stop_gradient(coefficients) * log_probs, axis=-1)


def score_function_kl_loss(log_probs, log_ratios):
    """`mean_i log π(y_i) · sg(log π - log π_anchor)`: descends `KL(π ‖ π_a)`.

    The regulariser of eq. 19. Algorithm 2 prints the opposite sign, which
    would RAISE the divergence; the minimising sign is implemented. The
    log-ratio itself as a loss would have no gradient in expectation.

    Args:
        log_probs: float tensor `(batch, samples)`, with gradient, of samples
            of `π`.
        log_ratios: float tensor `(batch, samples)`, `log π - log π_anchor`,
            or that less a baseline.

    Returns:
        float tensor `(batch,)`.
    """
    return ops.mean(log_probs * ops.stop_gradient(log_ratios), axis=-1)
