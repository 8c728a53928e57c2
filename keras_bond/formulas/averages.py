"""Means over valid prompts, and the baselines of policy gradients."""

from keras import ops

BASELINES = ("batch", "prompt", "mixed")


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


def centered(values, residuals, mask):
    """Deviations from the mean of a batch, with the digits that it covers.

    In float32, `1e6 + 0.01` is 1e6; the difference to the mean is what a
    baseline leaves of it, and has all its digits.

    Args:
        values: float tensor `(batch, samples)`.
        residuals: float tensor of the same shape, what is missing from values
            that were rounded.
        mask: bool tensor `(batch,)`, False for prompts to ignore.

    Returns:
        float32 tensor `(batch, samples)`, 0 where `mask` is False.
    """
    mean = masked_mean(ops.mean(values, axis=1), mask)
    deviations = ops.subtract(values, mean) + residuals
    return ops.where(ops.expand_dims(mask, -1), deviations, 0.0)


def leave_one_out_mean(values, mask):
    """Mean over the OTHER prompts, which adds no bias as a baseline.

    `B_i = (Σ_j m_j v_j - m_i v_i) / (Σ_j m_j - m_i)`, the baseline of BOND
    (Sessa et al., ICLR 2025, arXiv 2407.14622, section 3.2). It is 0 for a
    prompt without others.

    Args:
        values: float tensor `(batch,)`.
        mask: bool tensor `(batch,)`, False for prompts to ignore.

    Returns:
        float32 tensor `(batch,)`.
    """
    mask = ops.cast(mask, "float32")
    kept = ops.where(ops.greater(mask, 0), ops.cast(values, "float32"), 0.0)
    others = ops.sum(kept) - kept
    return others / ops.maximum(ops.sum(mask) - mask, 1.0)


def baseline(returns, mask, kind):
    """Baseline `B` of the returns, independent of the sample's own return.

    - `"batch"`: the mean return of the other prompts, as in BOND (Sessa et
      al., ICLR 2025, arXiv 2407.14622, section 3.2);
    - `"prompt"`: the mean return of the prompt's other samples, as in RLOO
      (Ahmadian et al., 2024, arXiv 2402.14740);
    - `"mixed"`: the mean of the two. With one sample per prompt it is
      `"batch"`, with one prompt it is `"prompt"`.

    Args:
        returns: float tensor `(batch, samples)`.
        mask: bool tensor `(batch,)`, False for prompts to ignore.
        kind: str, one of `BASELINES`.

    Returns:
        float32 tensor `(batch, samples)`.
    """
    num_samples = returns.shape[1]
    mean = ops.mean(returns, axis=1)
    by_batch = ops.expand_dims(leave_one_out_mean(mean, mask), -1)
    by_batch = ops.broadcast_to(by_batch, returns.shape)
    if kind == "batch" or num_samples == 1:
        return by_batch
    total = ops.sum(returns, axis=1, keepdims=True)
    by_prompt = (total - returns) / (num_samples - 1)
    if kind == "prompt":
        return by_prompt
    alone = ops.sum(ops.cast(mask, "int32")) < 2
    return 0.5 * by_prompt + 0.5 * ops.where(alone, by_prompt, by_batch)
