"""Log-probabilities of tokens and of completions, always in float32."""

from keras import ops


def token_log_probs(logits, token_ids, temperature=1.0):
    """Log-probability of each token under its logits.

    `log softmax(logits / T)[token]`. The temperature belongs here as much as
    in the sampler: ratios of probabilities mean nothing unless they are those
    of the law that was sampled.

    Args:
        logits: float tensor `(..., vocabulary)`.
        token_ids: int tensor `(...)`.
        temperature: float. `T` above. Defaults to 1.

    Returns:
        float32 tensor `(...)`, in nats.
    """
    logits = ops.cast(logits, "float32") / temperature
    # Floats, for what has a gradient written out takes no other arguments.
    token_ids = ops.expand_dims(ops.cast(token_ids, "float32"), -1)
    return _log_softmax_at(logits, token_ids)


@ops.custom_gradient
def _log_softmax_at(logits, token_ids):
    """`log softmax(logits)[token]`, with its gradient written out.

    That of a gather, and what a softmax keeps for its own, would each be
    another array of the size of the logits.
    """
    normalizers = ops.logsumexp(logits, axis=-1, keepdims=True)
    chosen = ops.take_along_axis(logits, ops.cast(token_ids, "int32"), axis=-1)

    def gradient(*arguments, upstream=None):
        if upstream is None:
            (upstream,) = arguments
        vocabulary = ops.arange(logits.shape[-1], dtype="float32")
        is_chosen = ops.cast(ops.equal(vocabulary, token_ids), "float32")
        probabilities = ops.exp(logits - normalizers)
        of_logits = upstream[..., None] * (is_chosen - probabilities)
        return of_logits, ops.zeros_like(token_ids)

    return (chosen - normalizers)[..., 0], gradient


def sequence_log_probs(token_log_probs, mask):
    """`log π(y|x) = Σ_t log π(y_t | x, y_<t)` over the completion's tokens.

    Args:
        token_log_probs: float tensor `(..., length)`.
        mask: bool tensor `(..., length)`, True for the completion's tokens,
            the end token included.

    Returns:
        float32 tensor `(...)`, in nats.
    """
    token_log_probs = ops.cast(token_log_probs, "float32")
    kept = ops.where(mask, token_log_probs, ops.zeros_like(token_log_probs))
    return ops.sum(kept, axis=-1)


def token_entropies(logits, temperature=1.0):
    """Entropy of the next-token distribution over the whole vocabulary.

    `H = log Σ_v exp(z_v) - Σ_v softmax(z)_v z_v` with `z = logits / T`.

    Args:
        logits: float tensor `(..., vocabulary)`.
        temperature: float. `T` above. Defaults to 1.

    Returns:
        float32 tensor `(...)`, in nats.
    """
    logits = ops.cast(logits, "float32") / temperature
    expected = ops.sum(ops.softmax(logits, axis=-1) * logits, axis=-1)
    return ops.logsumexp(logits, axis=-1) - expected
