"""Placement of rows and variables on one device, for TensorFlow and PyTorch.

It defines the same names as `many_devices`.
"""

from keras import ops


def num_replicas():
    """Returns the number of shards of a batch."""
    return 1


def num_processes():
    """Returns the number of processes that train together."""
    return 1


def process_index():
    """Returns the index of this process; process 0 writes files."""
    return 0


def wait_for_all(name):
    """Does nothing, as there is one process."""


def is_same_everywhere(number):
    """Whether `number` is the same in all processes."""
    return True


def own_rows(array):
    """Returns all rows of a batch."""
    return array


def to_device(array):
    """Converts a NumPy array to a tensor."""
    return ops.convert_to_tensor(array)


def to_host(tensor):
    """Converts a tensor to a NumPy array."""
    return ops.convert_to_numpy(tensor)


def to_every_host(tensor):
    """Returns all rows of a tensor as a NumPy array."""
    return ops.convert_to_numpy(tensor)


def shard(tensor, axis=0):
    """Returns the tensor unchanged, as there is one device."""
    return tensor


def take_rows(tensor, rows):
    """Gathers rows.

    Args:
        tensor: tensor `(rows, ...)`.
        rows: int32 tensor `(1, kept)`. Indices of the rows.

    Returns:
        tensor `(kept, ...)`.
    """
    return ops.take(tensor, rows[0], axis=0)


def put_rows(tensor, rows, values):
    """Returns `tensor` with `values` in the rows that `take_rows` took."""
    return ops.scatter_update(tensor, rows[0][:, None], values)


def layout_of(variable):
    """Returns `None`, as variables have no layout on one device."""
    return None


def num_devices(variable):
    """Returns the number of devices that hold a variable or a shard of it."""
    return 1


def is_split(variable):
    """Whether a variable is sharded, not replicated."""
    return False


def is_here(variable):
    """Whether this process holds all values of a variable."""
    return True
