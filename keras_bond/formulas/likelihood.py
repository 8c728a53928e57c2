"""Log-probabilities of tokens and completions, in float32."""

from keras import ops


def token_log_probs(logits, token_ids, temperature=1.0):
    """Log-probability of each token under its logits.

    `log softmax(logits / T)[token]`, with the temperature of the sampler:
    probability ratios must be those of the distribution that was sampled.

    Args:
        logits: float tensor `(..., vocabulary)`.
        token_ids: int tensor `(...)`.
        temperature: float. `T` above. Defaults to 1.

    Returns:
        float32 tensor `(...)`, in nats.
    """
    logits = ops.cast(logits, "float32") / temperature
    # `custom_gradient` takes float arguments only.
    token_ids = ops.expand_dims(ops.cast(token_ids, "float32"), -1)
    return _log_softmax_at(logits, token_ids)


@ops.custom_gradient
def _log_softmax_at(logits, token_ids):
    """`log softmax(logits)[token]` with a gradient of its own.

    The automatic gradient keeps the softmax and scatters the gather, each one
    more array of the size of the logits.
    """
    normalizers = ops.logsumexp(logits, axis=-1, keepdims=True)
    chosen = ops.take_along_axis(logits, ops.cast(token_ids, "int32"), axis=-1)

    def gradient(*arguments, upstream=None):
        if upstream is None:
            (upstream,) = arguments
        vocabulary = ops.arange(logits.shape[-1], dtype="float32")
        is_chosen = ops.cast(ops.equal(vocabulary, token_ids), "float32")
        probabilities = ops.exp(logits - normalizers)
        logits_gradient = upstream[..., None] * (is_chosen - probabilities)
        return logits_gradient, ops.zeros_like(token_ids)

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
