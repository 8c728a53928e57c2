"""Labels and loss of a quantile model (appendix B.1 of BOND)."""

from keras import ops


def quantile_labels(rewards, num_policy_samples):
    """Shares of the other anchor samples not above, and below, each sample.

    `1{r(y') <= r(y)}` of eq. 25 (BOND, Sessa et al., ICLR 2025, arXiv
    2407.14622), averaged over all anchor samples y' but y itself: the same
    expectation as one of them, with less variance. Ties need the second label,
    with `<`.

    Args:
        rewards: float tensor `(batch, P + k)`, policy samples first, k at
            least 2.
        num_policy_samples: int, P.

    Returns:
        float32 tensor `(batch, P + k, 2)`: estimates of `p_le` and `p_lt`.
    """
    p, n = num_policy_samples, rewards.shape[1]
    own = ops.expand_dims(rewards, -1)
    anchors = ops.expand_dims(rewards[:, p:], -2)
    # An anchor sample is not compared with itself.
    counts = 1.0 - ops.eye(n, n - p, k=-p, dtype="float32")
    shares = [
        ops.sum(ops.cast(event, "float32") * counts, axis=-1)
        / ops.sum(counts, axis=-1)
        for event in (anchors <= own, anchors < own)
    ]
    return ops.stack(shares, axis=-1)


def quantile_loss(logits, labels):
    """Binary cross-entropy of quantile logits, mean over samples (eq. 25).

    Args:
        logits: float tensor `(batch, samples, 2)`.
        labels: float tensor `(batch, samples, 2)` in [0, 1].

    Returns:
        float tensor `(batch,)`, in nats.
    """
    losses = ops.softplus(logits) - ops.multiply(labels, logits)
    return ops.mean(losses, axis=(1, 2))
