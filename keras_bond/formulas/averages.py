"""Means over the prompts that could be scored."""

from keras import ops


def masked_mean(values, mask):
    """Mean of `values` over the entries that `mask` keeps, 0 if none is kept.

    Args:
        values: float tensor.
        mask: bool or float tensor of the same shape.

    Returns:
        float32 scalar.
    """
    mask = ops.cast(mask, "float32")
    kept = ops.where(ops.greater(mask, 0), ops.cast(values, "float32"), 0.0)
    return ops.sum(kept * mask) / ops.maximum(ops.sum(mask), 1.0)


def leave_one_out_mean(values, mask):
    """For each entry the mean of the others: a baseline that adds no bias.

    `B_i = (Σ_j m_j v_j - m_i v_i) / (Σ_j m_j - m_i)`, the baseline of BOND
    (Sessa et al., arXiv 2407.14622, section 3.2). An entry without others
    gets 0.

    Args:
        values: float tensor `(batch,)`.
        mask: bool tensor `(batch,)`, False for prompts that dropped out.

    Returns:
        float32 tensor `(batch,)`.
    """
    mask = ops.cast(mask, "float32")
    kept = ops.where(ops.greater(mask, 0), ops.cast(values, "float32"), 0.0)
    others = ops.sum(kept) - kept
    return others / ops.maximum(ops.sum(mask) - mask, 1.0)
