"""Decoding loop of JAX and TensorFlow, with fixed shapes."""

from keras import ops


def decode_loop(body, start, stop, state, cache):
    """Runs `state, cache = body(index, state, cache)` for each token.

    Args:
        body: callable.
        start: int scalar tensor. First index.
        stop: int. End of the range of indices.
        state: dict of tensors `(rows, ...)`. The loop stops early when all
            entries of `"ended"`, a bool tensor `(rows,)`, are True.
        cache: nested structure of tensors `(rows, ...)`.

    Returns:
        the final `state`.
    """

    def is_unfinished(index, state, cache):
        all_ended = ops.all(state["ended"])
        return ops.logical_and(index < stop, ops.logical_not(all_ended))

    def advance(index, state, cache):
        return index + 1, *body(index, state, cache)

    return ops.while_loop(is_unfinished, advance, (start, state, cache))[1]
