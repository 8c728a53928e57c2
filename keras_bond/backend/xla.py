"""What JAX and TensorFlow share: shapes are fixed, loops are compiled."""

from keras import ops


def decode_loop(body, start, stop, state, cache):
    """Runs `state, cache = body(index, state, cache)` for each token.

    Args:
        body: callable.
        start, stop: int scalar tensor and int. Indices of the tokens.
        state: dict of tensors `(rows, ...)`; `"ended"`, bool, marks rows that
            need no further token. When all have ended, the loop does too.
        cache: nested structure of tensors `(rows, ...)`.

    Returns:
        the last `state`.
    """

    def goes_on(index, state, cache):
        all_ended = ops.all(state["ended"])
        return ops.logical_and(index < stop, ops.logical_not(all_ended))

    def advance(index, state, cache):
        return index + 1, *body(index, state, cache)

    return ops.while_loop(goes_on, advance, (start, state, cache))[1]
