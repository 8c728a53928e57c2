"""TensorFlow and PyTorch: all rows and variables live on one device.

The same names as in `many_devices`, for JAX.
"""

from keras import ops


def num_replicas():
    """Into how many parts the rows of a batch are spread over devices."""
    return 1


def num_processes():
    """How many processes train together."""
    return 1


def process_index():
    """Which of them this one is; the one numbered 0 writes files."""
    return 0


def wait_for_all(name):
    """Waits until all processes have come to the place of that name."""


def is_same_everywhere(number):
    """Whether all processes have the same number."""
    return True


def own_rows(array):
    """The rows of a batch that are this process's: all."""
    return array


def to_device(array):
    """Makes a tensor of a NumPy array."""
    return ops.convert_to_tensor(array)


def to_host(tensor):
    """Makes a NumPy array of a tensor."""
    return ops.convert_to_numpy(tensor)


def shard(tensor, axis=0):
    """Keeps an axis of rows spread over devices: over the only one."""
    return tensor


def gathered(tensor):
    """Gives every device the whole tensor."""
    return tensor


def layout_of(variable):
    """Where a variable lives."""
    return None


def num_devices(variable):
    """How many devices hold a variable or a part of it."""
    return 1


def is_split(variable):
    """Whether no device holds all of a variable."""
    return False


def is_here(variable):
    """Whether this process has all of a variable."""
    return True
