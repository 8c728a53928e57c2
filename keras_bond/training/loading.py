"""Loading of weights: all of them or none, with errors that name the file."""

import contextlib
import os
import zipfile

import h5py
import numpy as np
from keras import ops

from keras_bond import backend

# The name that Keras gives to the weights in a `.keras` file.
WEIGHTS = "model.weights.h5"
# What Keras raises for the weights of another model.
OF_ANOTHER_MODEL = (AttributeError, LookupError, TypeError, ValueError)


def variables_of(models):
    """All variables of models and, if they are compiled, of their optimizers.

    Args:
        models: list of `keras.Layer`, whose own layers count too.

    Returns:
        list of `keras.Variable`, each once.
    """
    found = {}
    for model in models:
        for layer in model._flatten_layers():
            # A model that was never compiled has no such attribute.
            optimizer = getattr(layer, "optimizer", None)
            if optimizer is not None:
                found.update({id(v): v for v in optimizer.variables})
        found.update({id(v): v for v in model.variables})
    return list(found.values())


@contextlib.contextmanager
def all_or_nothing(models):
    """Returns a context that restores the values of models after an error."""
    variables = variables_of(models)
    values = [_kept(variable) for variable in variables]
    try:
        yield
    except BaseException:
        for variable, value in zip(variables, values):
            variable.assign(value)
        raise


@contextlib.contextmanager
def naming(filepath):
    """Returns a context whose loading errors name the file.

    Raises:
        OSError: if the file is damaged or cannot be read, which
            `keras.callbacks.BackupAndRestore(double_checkpoint=True)` expects
            of a checkpoint before it takes the one before.
        ValueError: if it belongs to a different model.
    """
    # HDF5 in an archive is read in pieces, for which no checksum is compared.
    is_archive = str(filepath).endswith(".keras")
    if is_archive and (damage := damage_of(filepath)):
        raise _damaged(filepath, damage) from damage
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _damaged(filepath, error) from error
    except Exception as error:
        if damage := damage_of(filepath):
            raise _damaged(filepath, damage) from error
        if not isinstance(error, OF_ANOTHER_MODEL):
            raise
        raise ValueError(
            "The file must hold the weights of a model that is built and "
            "compiled in the same way: the same classes, policy, LoRA rank "
            "and optimizer. Nothing was changed. Received: "
            f"{filepath}, {type(error).__name__}: {error}"
        ) from error


def damage_of(filepath):
    """Finds out whether a file of weights can be read from end to end.

    Args:
        filepath: str or path.

    Returns:
        an exception, or `None` for a file that is whole, or is not a single
        local file.
    """
    if not os.path.isfile(filepath):
        return None
    try:
        if str(filepath).endswith(".keras"):
            _read_archive(filepath)
        else:
            with h5py.File(filepath, "r") as file:
                _read_datasets(file, os.path.getsize(filepath))
    # Broken HDF5 raises anything.
    except Exception as error:
        return error
    return None


def _read_archive(filepath):
    with zipfile.ZipFile(filepath) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise OSError(f"{damaged!r} in it has another checksum")
        if WEIGHTS not in archive.namelist():
            return
        with archive.open(WEIGHTS) as file, h5py.File(file, "r") as weights:
            _read_datasets(weights, archive.getinfo(WEIGHTS).file_size)


def _read_datasets(file, num_bytes):
    def read(name, item):
        if not isinstance(item, h5py.Dataset):
            return
        if item.nbytes > num_bytes:
            raise OSError(f"{name!r} in it is larger than the file")
        item[()]

    file.visititems(read)


def _damaged(filepath, error):
    return OSError(
        "The file must be complete and readable, but it is damaged: load an "
        "older one. Nothing was changed. Received: "
        f"{filepath}, {type(error).__name__}: {error}"
    )


def _kept(variable):
    """The value of a variable, unaffected by later assignments."""
    if backend.name == "jax":
        return variable.value
    return np.array(ops.convert_to_numpy(variable))
