"""Token ids and sizes of batches: checks, truncating, padding, sharding."""

import keras
import numpy as np

from keras_bond import backend


def check_ids(token_ids, size, name):
    """Raises an error if token ids are outside of a vocabulary.

    An embedding does not: on some backends it returns NaN, on others the
    values of another token.

    Args:
        token_ids: list of int, or array of any shape.
        size: int. Number of tokens in the vocabulary.
        name: str. What has these ids, for the message.

    Raises:
        ValueError: naming the first id that is outside.
    """
    if len(token_ids) == 0:
        return
    is_array = hasattr(token_ids, "shape")
    least = np.min(token_ids) if is_array else min(token_ids)
    most = np.max(token_ids) if is_array else max(token_ids)
    if least < 0 or most >= size:
        wrong = least if least < 0 else most
        raise ValueError(
            f"Token ids must be in the vocabulary of the model, in [0, {size})"
            ": tokenizer and model must belong together, and padding needs a "
            f"`padding_mask`. Received: token id {wrong} in {name}"
        )


def truncate_left(token_ids, length, start):
    """Keeps the end of a text that is too long, after its start token.

    Args:
        token_ids: list of int, more than `length`.
        length: int. Tokens to keep, the start token included.
        start: list of int. The start token, or nothing.

    Returns:
        list of int. Without the start token if `token_ids` begin differently.
    """
    if token_ids[: len(start)] != start:
        start = []
    return [*start, *token_ids[len(token_ids) - length + len(start) :]]


def pad(token_ids, length=None):
    """Pads token ids on the right.

    Args:
        token_ids: list of lists of int, at least one.
        length: int. Defaults to that of the longest list.

    Returns:
        dict of arrays `(batch, length)`: `token_ids` int32, `padding_mask`
        bool.
    """
    lengths = np.array([len(ids) for ids in token_ids])
    length = lengths.max() if length is None else length
    padded = keras.utils.pad_sequences(token_ids, length, padding="post")
    padding_mask = np.arange(length)[None, :] < lengths[:, None]
    return {"token_ids": padded, "padding_mask": padding_mask}


def check_sharding(batch_size):
    """Raises an error if a batch cannot be sharded evenly over the devices.

    Raises:
        ValueError: naming the batch size and the number of shards.
    """
    shards = backend.devices.num_replicas()
    if batch_size % shards:
        raise ValueError(
            "`batch_size` must be a multiple of the number of shards into "
            "which the distribution splits a batch: choose "
            f"batch_size={shardable(batch_size)}, or a mesh with a shorter "
            f"batch axis. Received: batch_size={batch_size}, {shards} shards"
        )


def shardable(batch_size):
    """The next larger batch size that can be sharded evenly over devices."""
    return next_multiple(batch_size, backend.devices.num_replicas())


def next_multiple(batch_size, factor):
    """The smallest multiple of a factor that is at least a batch size."""
    return batch_size + -batch_size % factor
