"""Decoding loop of JAX and TensorFlow, with fixed shapes."""

from keras import ops
from keras import tree

from keras_bond.backend import devices

# Number of batch sizes at most: each one compiles the loop once more.
MOST_SIZES = 4
# Rows per device below which fewer rows save hardly any time, since a token
# step then mostly reads the weights.
FEWEST_ROWS = 8


def decode_loop(body, start, stop, state, cache):
    """Runs `state, cache = body(index, state, cache)` for each token.

    When at most half of the rows are left, these are gathered and the loop
    continues with a batch of half the size, and so on, see `batch_sizes`. All
    loops are part of one program, so nothing is compiled later and nothing
    waits for the host.

    Args:
        body: callable.
        start: int scalar tensor. First index.
        stop: int. End of the range of indices.
        state: dict of tensors `(rows, ...)`. Rows whose entry of `"ended"`, a
            bool tensor `(rows,)`, is True may be removed during the loop, which
            stops early when all rows have ended.
        cache: nested structure of tensors `(rows, ...)`.

    Returns:
        the final `state`, with all rows.
    """
    rows, shards = state["ended"].shape[0], devices.num_replicas()
    if rows % shards:
        # A batch that cannot be sharded is on every device.
        shards = 1
    sizes = batch_sizes(rows // shards)
    return _decode(body, start, stop, state, cache, shards, sizes)


def batch_sizes(rows):
    """Returns the sizes of a shrinking batch: `rows`, half of them, and so on.

    Args:
        rows: int. Rows per device.

    Returns:
        list of int.
    """
    sizes = [rows]
    while len(sizes) < MOST_SIZES and sizes[-1] >= 2 * FEWEST_ROWS:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _decode(body, start, stop, state, cache, shards, sizes):
    """Decodes with the first of the batch sizes, then with the others.

    On several devices, each gathers its own rows, and the one with the most
    rows left decides when: no row of a cache moves to another device.
    """
    next_size = sizes[1] if len(sizes) > 1 else 0

    def has_too_many_left(index, state, cache):
        ended = ops.reshape(state["ended"], (shards, -1))
        left = ops.sum(ops.cast(ops.logical_not(ended), "int32"), axis=1)
        return ops.logical_and(index < stop, ops.max(left) > next_size)

    def advance(index, state, cache):
        return index + 1, *body(index, state, cache)

    index, state, cache = ops.while_loop(
        has_too_many_left, advance, (start, state, cache)
    )
    if not next_size:
        return state
    ended = ops.reshape(state["ended"], (shards, -1))
    left_first = ops.argsort(ops.cast(ended, "int32"), axis=1)
    rows = ops.cast(left_first[:, :next_size], "int32")
    rest, cache = tree.map_structure(
        lambda tensor: devices.take_rows(tensor, rows), (state, cache)
    )
    rest = _decode(body, index, stop, rest, cache, shards, sizes[1:])
    return {
        name: devices.put_rows(tensor, rows, rest[name])
        for name, tensor in state.items()
    }
