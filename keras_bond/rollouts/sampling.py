"""Picks tokens with one random number a row."""

import math

from keras import ops

# The largest float32 below 1: keeps a number inside its interval.
BELOW_ONE = 1.0 - 2.0**-24


def inverse_cdf_sample(logits, uniforms):
    """Draws from `softmax(logits)` by inverting the cumulative distribution.

    One random number a row instead of one for every entry of the vocabulary.
    The vocabulary is cut into about √V blocks of √V tokens; a search over the
    sums of the blocks finds the block, a search inside it the token, so that
    no running sum over the whole vocabulary is needed.

    Args:
        logits: float32 tensor `(rows, vocabulary)`; -inf for what is
            impossible.
        uniforms: float32 tensor `(rows,)` in [0, 1).

    Returns:
        `(token_ids, log_normalizers)`: int32 tensor `(rows,)`, never a token
        of probability 0; float32 tensor `(rows,)`, `logsumexp` of the logits.
    """
    largest = ops.max(logits, axis=-1, keepdims=True)
    blocks = _into_blocks(ops.exp(logits - largest))
    sums = ops.sum(blocks, axis=-1)
    block, rest, total = _find(sums, uniforms)
    inside = ops.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    token, _, _ = _find(inside, rest)
    token_ids = block * blocks.shape[-1] + token
    return token_ids, ops.log(total) + largest[:, 0]


def _into_blocks(weights):
    """`(rows, vocabulary)` as `(rows, blocks, √V)`, padded with zeros."""
    vocabulary = weights.shape[1]
    size = 2 ** math.ceil(math.log2(vocabulary) / 2)
    missing = -vocabulary % size
    if missing:
        weights = ops.pad(weights, [(0, 0), (0, missing)])
    num_blocks = (vocabulary + missing) // size
    return ops.reshape(weights, (-1, num_blocks, size))


def _find(weights, uniforms):
    """Finds the entry whose interval of the cumulative sum holds a number.

    Returns:
        `(index, rest, total)`: int32 tensor `(rows,)`; float32 tensor
        `(rows,)` in [0, 1), where in that interval the number lies; float32
        tensor `(rows,)`, the sum of the weights.
    """
    cumulative = ops.cumsum(weights, axis=-1)
    total = cumulative[:, -1]
    # Clipped, for rounding may leave it at the end of its interval.
    targets = ops.minimum(uniforms, BELOW_ONE) * total * BELOW_ONE
    reached = ops.logical_and(cumulative > targets[:, None], weights > 0)
    index = ops.cast(ops.argmax(reached, axis=-1), "int32")
    width = ops.take_along_axis(weights, index[:, None], axis=1)[:, 0]
    end = ops.take_along_axis(cumulative, index[:, None], axis=1)[:, 0]
    rest = 1.0 - (end - targets) / width
    return index, ops.clip(rest, 0.0, BELOW_ONE), total
