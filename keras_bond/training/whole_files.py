"""Files of a model, written and loaded whole or not at all."""

import contextlib
import math
import pathlib
import re

import keras

from keras_bond import files
from keras_bond.backend import devices
from keras_bond.training import loading
from keras_bond.training import round_trip

# What HDF5 needs at most for a variable, besides its values.
HEADER_BYTES = 4096


class WholeFiles:
    """Mixin for `keras.Model` that writes and loads files whole or not at all.

    LoRA adapters of `network_with_adapters()` are not merged. A subclass sets
    `lacks_weights` in its `from_config`, and calls `check_weights` before it
    computes anything.
    """

    # Whether the model was made from a config, and its weights not loaded yet.
    lacks_weights = False

    def network_with_adapters(self):
        """The part of the model that may have LoRA adapters, or `None`."""
        return None

    def models_in_file(self):
        """This model, and others whose weights are in its files."""
        return [self]

    def save(self, filepath, overwrite=True, **kwargs):
        """See `keras.Model.save`. LoRA adapters are not merged.

        If there are several processes, the first one writes and the others
        wait.

        Raises:
            OSError: if the disk has too little room.
            ValueError: if what would be written could not be loaded again.
        """
        round_trip.check(self)
        with self._writing(filepath, overwrite) as path:
            if path is not None:
                super().save(path, overwrite=overwrite, **kwargs)

    def save_weights(self, filepath, overwrite=True, **kwargs):
        """Saves the weights, of a trainer also anchor, optimizer and counters.

        See `keras.Model.save_weights`. If there are several processes, the
        first one writes and the others wait.

        Raises:
            OSError: if the disk has too little room.
        """
        with self._writing(filepath, overwrite) as path:
            if path is not None:
                super().save_weights(path, overwrite=overwrite, **kwargs)

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        """See `keras.Model.load_weights`. If it fails, nothing is changed.

        Raises:
            OSError: if the file is missing, damaged or cannot be read.
            ValueError: if it belongs to a different model.
        """
        models = self.models_in_file()
        with loading.all_or_nothing(models), loading.naming(filepath):
            super().load_weights(filepath, skip_mismatch, **kwargs)

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.lacks_weights = False

    def set_weights(self, weights):
        """See `keras.Layer.set_weights`."""
        super().set_weights(weights)
        self.lacks_weights = False

    def set_state_tree(self, state_tree):
        """See `keras.Model.set_state_tree`, which Orbax restores with."""
        super().set_state_tree(state_tree)
        self.lacks_weights = False

    def check_weights(self):
        """Raises an error if the model was made from a config alone.

        Raises:
            ValueError: if so, as `keras.models.clone_model` does.
        """
        if self.lacks_weights:
            raise ValueError(
                "A model cannot be used that was made from its config alone, "
                "as by `keras.models.clone_model`: a config holds no weights "
                "and no vocabulary. Copy a model with `copy.deepcopy`, or "
                "`save` it and load it with `keras.saving.load_model`. "
                f"Received: a {type(self).__name__} with initial weights"
            )

    def __reduce__(self):
        # Copies and pickles are made by Keras, through a file in memory.
        with unmerged(self.network_with_adapters()):
            return super().__reduce__()

    @contextlib.contextmanager
    def _writing(self, filepath, overwrite):
        """Yields the path to write to, or `None` if another process writes."""
        with (
            unmerged(self.network_with_adapters()),
            by_one_process(self) as is_writer,
        ):
            if not is_writer:
                yield None
                return
            if not files.is_remote(filepath):
                files.check_free_space(filepath, self._num_bytes())
            with atomic_path(filepath, overwrite) as path:
                yield path

    def _num_bytes(self):
        variables = loading.variables_of(self.models_in_file())
        return bytes_of(variables) + HEADER_BYTES * len(variables)


def lora_layers(policy):
    """Returns the policy's layers that have LoRA adapters, in order."""
    layers = policy._flatten_layers()
    return [layer for layer in layers if hasattr(layer, "lora_kernel_a")]


def lora_factors(policy):
    """Returns the factors of the policy's LoRA adapters.

    Returns:
        `(firsts, seconds)`: lists of `keras.Variable`. The second factors are
        zero until they are trained.
    """
    layers = policy._flatten_layers()
    return tuple(
        [
            getattr(layer, f"lora_{kind}_{factor}")
            for layer in layers
            for kind in ("kernel", "embeddings")
            if hasattr(layer, f"lora_{kind}_{factor}")
        ]
        for factor in "ab"
    )


@contextlib.contextmanager
def unmerged(policy):
    """Returns a context in which layers save kernels without adapters.

    Args:
        policy: `keras.Model`, or `None` for one that is saved merged.
    """
    layers = [] if policy is None else lora_layers(policy)
    layers = [layer for layer in layers if layer.lora_enabled]
    for layer in layers:
        layer.lora_enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.lora_enabled = True


@contextlib.contextmanager
def by_one_process(model):
    """Returns a context that only one process writes in.

    Yields whether this process is the one. All processes wait for each other at
    the end of the context.

    Raises:
        ValueError: if no process holds all of the weights.
    """
    if devices.num_processes() == 1:
        yield True
        return
    # Keras does this first when it saves, which only one process does below;
    # all processes have to do it together.
    model.jax_state_sync()
    split = [v.path for v in model.variables if not devices.is_here(v)]
    if split:
        raise ValueError(
            "Weights that are sharded over several processes cannot be written "
            "by one of them: use a mesh whose second axis stays within a "
            "process, or `keras.callbacks.OrbaxCheckpoint`. Received: "
            f"{len(split)} such variables, the first {split[0]!r}"
        )
    distribution = keras.distribution.distribution()
    # To save, Keras creates variables for comparison, which a single process
    # cannot shard over all processes.
    keras.distribution.set_distribution(None)
    try:
        yield devices.process_index() == 0
    finally:
        keras.distribution.set_distribution(distribution)
        devices.wait_for_all("saved")


@contextlib.contextmanager
def atomic_path(filepath, overwrite):
    """Returns a context in which Keras writes a file atomically.

    Yields the path to write to, see `files.atomic_file`. For remote files,
    sharded files and files that must not be overwritten, this is `filepath`
    itself.

    Args:
        filepath: str or path.
        overwrite: bool. See `keras.Model.save`.
    """
    path = pathlib.Path(filepath)
    is_one_file = path.name.endswith((".weights.h5", ".keras"))
    if not is_one_file or files.is_remote(filepath):
        yield filepath
    elif path.exists() and not overwrite:
        yield filepath
    else:
        with files.atomic_file(path) as unfinished:
            yield unfinished


def bytes_of(variables, dtype=None):
    """Bytes of the values of some variables.

    Args:
        variables: list of `keras.Variable`.
        dtype: str. What they are cast to, or `None` for their own.
    """
    return sum(
        math.prod(variable.shape) * _item_bytes(dtype or variable.dtype)
        for variable in variables
    )


def _item_bytes(dtype):
    """Bytes of a number; those of less than a byte and `bool` take one."""
    bits = re.search(r"\d+", dtype)
    return max(int(bits.group()) // 8, 1) if bits else 1
