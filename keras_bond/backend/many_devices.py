"""Placement of rows and variables on one or many devices, for JAX."""

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils


def num_replicas():
    """Returns the number of shards of a batch."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else distribution.num_model_replicas


def num_processes():
    """Returns the number of processes that train together."""
    return jax.process_count()


def process_index():
    """Returns the index of this process; process 0 writes files."""
    return jax.process_index()


def wait_for_all(name):
    """Waits until all processes have called this function with `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def is_same_everywhere(number):
    """Whether `number`, below 2³¹, is the same in all processes."""
    everyones = multihost_utils.process_allgather(np.array(number, "int32"))
    return bool((everyones == number).all())


def own_rows(array):
    """Returns the rows of a batch that this process tokenizes and scores.

    Args:
        array: NumPy array `(rows, ...)`, the same in every process.

    Returns:
        NumPy array `(own rows, ...)`.
    """
    if jax.process_count() == 1 or keras.distribution.distribution() is None:
        return array
    places = _sharding(array).addressable_devices_indices_map(array.shape)
    parts = sorted({_bounds(place, len(array)) for place in places.values()})
    return np.concatenate([array[start:stop] for start, stop in parts])


def to_device(array):
    """Makes a tensor of the rows of all processes, sharded over the devices.

    Args:
        array: NumPy array `(own rows, ...)`, the rows of this process.

    Returns:
        tensor `(rows, ...)`.
    """
    if keras.distribution.distribution() is None:
        return jax.numpy.asarray(array)
    return jax.make_array_from_process_local_data(_sharding(array), array)


def to_host(tensor):
    """Returns this process's rows of a tensor as a NumPy array."""
    tensor = jax.numpy.asarray(tensor)
    if tensor.is_fully_addressable or tensor.is_fully_replicated:
        return np.asarray(tensor)
    parts = {
        _bounds(shard.index, len(tensor)): shard.data
        for shard in tensor.addressable_shards
    }
    return np.concatenate([np.asarray(parts[place]) for place in sorted(parts)])


def to_every_host(tensor):
    """Returns all rows of a tensor, in each process, as a NumPy array."""
    if tensor.is_fully_addressable or tensor.is_fully_replicated:
        return np.asarray(tensor)
    return multihost_utils.process_allgather(tensor, tiled=True)


def shard(tensor, axis=0):
    """Shards an axis of rows over the devices, in a compiled function."""
    distribution = keras.distribution.distribution()
    if distribution is None or tensor.shape[axis] % num_replicas():
        return tensor
    axes = [None] * len(tensor.shape)
    axes[axis] = distribution.batch_dim_name
    return _constrained(tensor, axes)


def take_rows(tensor, rows):
    """Gathers rows of each shard, which stay on their device.

    Args:
        tensor: tensor `(shards * rows per shard, ...)`.
        rows: int32 tensor `(shards, kept)`. Indices within each shard.

    Returns:
        tensor `(shards * kept, ...)`.
    """
    taken = jax.vmap(lambda shard, chosen: shard[chosen])(
        _by_shard(tensor, len(rows)), rows
    )
    return _joined(taken)


def put_rows(tensor, rows, values):
    """Returns `tensor` with `values` in the rows that `take_rows` took."""
    changed = jax.vmap(lambda shard, chosen, new: shard.at[chosen].set(new))(
        _by_shard(tensor, len(rows)), rows, _by_shard(values, len(rows))
    )
    return _joined(changed)


def _by_shard(tensor, num_shards):
    return tensor.reshape(num_shards, -1, *tensor.shape[1:])


def _joined(shards):
    return shards.reshape(-1, *shards.shape[2:])


def layout_of(variable):
    """Returns the layout of a variable, for variables of the same shape."""
    distribution = keras.distribution.distribution()
    return distribution and distribution.get_variable_layout(variable)


def num_devices(variable):
    """Returns the number of devices that hold a variable or a shard of it."""
    return len(_place(variable).device_set)


def is_split(variable):
    """Whether a variable is sharded, not replicated."""
    return not _place(variable).is_fully_replicated


def is_here(variable):
    """Whether this process holds all values of a variable."""
    value = variable.value
    return value.is_fully_addressable or value.is_fully_replicated


def _sharding(array):
    distribution = keras.distribution.distribution()
    return distribution.get_data_layout(array.shape).backend_layout


def _place(variable):
    value = variable.value
    if isinstance(value, jax.core.Tracer):
        # A tracer has no sharding yet: use the one that it will get.
        layout = layout_of(variable)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return layout.backend_layout if layout else here
    return value.sharding


def _constrained(tensor, axes):
    mesh = keras.distribution.distribution().device_mesh
    layout = keras.distribution.TensorLayout(axes, mesh)
    return keras.distribution.distribute_tensor(tensor, layout)


def _bounds(index, num_rows):
    start, stop, _ = index[0].indices(num_rows)
    return start, stop
