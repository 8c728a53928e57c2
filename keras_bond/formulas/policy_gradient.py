"""Losses of sampled completions, one number per prompt.

Only their gradients matter: the value of a score-function loss is meaningless.
"""

from keras import ops


def weighted_likelihood_loss(log_probs, coefficients):
    """`-Σ_i sg(c_i) · log π(y_i)`: the loss of every estimator here.

    With `c = 1` for a Best-of-N sample it is the forward part of BOND (Sessa et
    al., ICLR 2025, arXiv 2407.14622, eq. 13), and with the advantages `R - B`
    of policy samples the backward part, REINFORCE (eq. 15).

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

    The regularizer of eq. 19. Algorithm 2 prints the opposite sign, which
    would RAISE the divergence; this is the sign that lowers it. The log-ratio
    itself, as a loss, would have zero gradient in expectation.

    Args:
        log_probs: float tensor `(batch, samples)`, with gradient, of samples
            of `π`.
        log_ratios: float tensor `(batch, samples)`, `log π - log π_anchor`,
            minus a baseline if any.

    Returns:
        float tensor `(batch,)`.
    """
    return ops.mean(log_probs * ops.stop_gradient(log_ratios), axis=-1)
