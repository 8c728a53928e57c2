"""The key-value cache of a KerasHub language model, whatever its layout."""

import inspect
import math

import keras
from keras import ops

from keras_bond.rollouts import sequences
from keras_bond.rollouts import sizes

# Two lengths that tell which axis of a cache is that of the tokens.
PROBES = (8, 16)


class CacheBuilder(keras.Operation):
    """Makes empty caches for a policy, and lets filled ones grow.

    KerasHub's decoders share `call_with_cache`, but each lays its cache out in
    its own way. The layout is asked for once, without computing anything.

    Args:
        policy: a `keras_hub.models.CausalLM`.

    Raises:
        ValueError: if the first axis of a cache is not the batch, or none is
            that of the tokens.
    """

    def __init__(self, policy):
        super().__init__()
        self.policy = policy
        short, long = (self._layout(length) for length in PROBES)
        self.spec = short
        self.length_axes = keras.tree.map_structure(_length_axis, short, long)

    def _layout(self, length):
        token_ids = keras.KerasTensor((1, length), dtype="int32")
        return self.compute_output_spec(token_ids)

    def call(self, token_ids):
        build = self.policy._build_cache
        num_extras = len(inspect.signature(build).parameters) - 1
        return build(token_ids, *[None] * num_extras)[1]

    def empty(self, batch_size, length):
        """Returns a cache of zeros for `batch_size` rows of `length` tokens."""
        return keras.tree.map_structure(
            lambda leaf, axis: ops.zeros(
                _resized(leaf.shape, axis, batch_size, length), leaf.dtype
            ),
            self.spec,
            self.length_axes,
        )

    def num_bytes(self, batch_size, length):
        """Bytes of a cache for `batch_size` rows of `length` tokens."""
        leaves = zip(
            keras.tree.flatten(self.spec), keras.tree.flatten(self.length_axes)
        )
        return sum(
            math.prod(_resized(leaf.shape, axis, batch_size, length))
            * sizes.itemsize(leaf.dtype)
            for leaf, axis in leaves
        )

    def grow(self, cache, num_samples, length):
        """Repeats every row, and makes room for more tokens.

        Args:
            cache: a cache of `(batch, ...)`.
            num_samples: int. Copies of each row, side by side.
            length: int. Tokens that the new cache holds.

        Returns:
            a cache of `(batch * num_samples, ...)`.
        """

        def grow_leaf(leaf, axis):
            room = [(0, 0)] * len(leaf.shape)
            room[axis] = (0, length - leaf.shape[axis])
            return ops.pad(sequences.repeat_rows(leaf, num_samples), room)

        return keras.tree.map_structure(grow_leaf, cache, self.length_axes)


def _resized(shape, axis, batch_size, length):
    shape = [batch_size, *shape[1:]]
    shape[axis] = length
    return tuple(shape)


def _length_axis(short, long):
    differing = [
        axis
        for axis, sizes in enumerate(zip(short.shape, long.shape))
        if sizes != (sizes[0], sizes[0])
    ]
    sizes = [(short.shape[axis], long.shape[axis]) for axis in differing]
    if short.shape[0] == 1 and sizes == [PROBES]:
        return differing[0]
    raise ValueError(
        "The key-value cache of `policy` must have the batch as its first "
        "axis and one axis for the tokens, as KerasHub's decoders do. "
        f"Received: a cache of shape {short.shape} for 1 row of {PROBES[0]} "
        f"tokens, and {long.shape} for {PROBES[1]}"
    )
