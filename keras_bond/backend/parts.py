"""Division of a batch into parts, on one or many devices.

If the rows of a batch are sharded over devices, every device holds some rows of
each part, so that no row moves to another device.
"""

from keras import ops
from keras import tree

from keras_bond.backend import devices


def split(tensors, num_parts):
    """Splits a batch.

    Args:
        tensors: nested structure of tensors `(batch, ...)`.
        num_parts: int. Must divide the number of rows per device.

    Returns:
        nested structure of tensors `(num_parts, batch / num_parts, ...)`.
    """

    def split_one(tensor):
        rest = tensor.shape[1:]
        grid = ops.reshape(
            tensor, (devices.num_replicas(), num_parts, -1, *rest)
        )
        parts = ops.reshape(ops.swapaxes(grid, 0, 1), (num_parts, -1, *rest))
        return devices.shard(parts, axis=1)

    return tree.map_structure(split_one, tensors)


def split_by(name, num_parts, tensors):
    """Splits a batch as an argument says, see `split`.

    Args:
        name: str. The argument, for messages.
        num_parts: int. Its value.
        tensors: nested structure of tensors `(batch, ...)`.

    Raises:
        ValueError: if the batch has no such parts.
    """
    batch_size = tree.flatten(tensors)[0].shape[0]
    check_divides(name, num_parts, batch_size)
    check_shards(name, num_parts, batch_size // num_parts)
    return split(tensors, num_parts)


def cut(name, size, tensors):
    """Cuts a batch into a list of smaller ones, see `split`.

    Args:
        name: str. The argument that gives their size, for messages.
        size: int, or `None` to leave the batch whole.
        tensors: nested structure of tensors `(batch, ...)`.

    Raises:
        ValueError: if the batch has no such parts.
    """
    batch_size = tree.flatten(tensors)[0].shape[0]
    size = size or batch_size
    check_divides(name, size, batch_size)
    if size == batch_size:
        return [tensors]
    check_shards(name, size, size)
    num_parts = batch_size // size
    parts = split(tensors, num_parts)
    return [
        tree.map_structure(lambda x, i=i: x[i], parts) for i in range(num_parts)
    ]


def concatenate(batches):
    """Joins what `cut` made of a batch, in the original order."""
    if len(batches) == 1:
        return batches[0]
    return join(tree.map_structure(lambda *x: ops.stack(x), *batches))


def join(tensors):
    """Joins the parts of a batch in the original order, see `split`.

    Args:
        tensors: nested structure of tensors `(parts, rows, ...)`.

    Returns:
        nested structure of tensors `(parts * rows, ...)`.
    """

    def join_one(tensor):
        num_parts, _, *rest = tensor.shape
        grid = ops.reshape(
            tensor, (num_parts, devices.num_replicas(), -1, *rest)
        )
        rows = ops.reshape(ops.swapaxes(grid, 0, 1), (-1, *rest))
        return devices.shard(rows)

    return tree.map_structure(join_one, tensors)


def check_divides(name, value, batch_size):
    """Raises an error if a batch is not divisible by an argument.

    Raises:
        ValueError: naming the argument and the batch.
    """
    if batch_size % value:
        raise ValueError(
            f"`{name}` must divide the batch: choose a divisor of the batch "
            f"size. Received: {name}={value}, a batch of {batch_size} prompts"
        )


def check_shards(name, value, rows):
    """Raises an error if a part cannot be sharded evenly over the devices.

    Raises:
        ValueError: naming the argument and the devices.
    """
    replicas = devices.num_replicas()
    if rows % replicas:
        raise ValueError(
            f"`{name}` must leave every part with a multiple of {replicas} "
            "prompts, because the distribution shards each part over that many "
            f"replicas. Received: {name}={value}, parts of {rows} prompts"
        )


def pad_and_split(tensor, num_parts):
    """Reshapes `(tokens, ...)` to `(parts, size, ...)`, zero-padded."""
    num_tokens = tensor.shape[0]
    size = -(-num_tokens // num_parts)
    padding = [(0, 0)] * len(tensor.shape)
    padding[0] = (0, num_parts * size - num_tokens)
    padded = ops.pad(tensor, padding) if padding[0][1] else tensor
    return ops.reshape(padded, (num_parts, size, *tensor.shape[1:]))
