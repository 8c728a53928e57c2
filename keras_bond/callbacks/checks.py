"""Checks of the callbacks that a user passes to `fit`."""

import os

import keras

from keras_bond import files
from keras_bond.packages import check_installed

TENSORBOARD = ["tensorflow", "tensorboard"]


def as_list(callbacks):
    """Returns what a user passes as `callbacks` as a list.

    Args:
        callbacks: list of `keras.callbacks.Callback`, one of them, a
            `keras.callbacks.CallbackList`, or `None`.

    Raises:
        TypeError: if one of them is not a callback.
        ImportError: if one of them is a `keras.callbacks.TensorBoard`, which
            would miss its packages only after the first step.
        ValueError: if one of them is a `keras.callbacks.OrbaxCheckpoint` with a
            relative path, which would fail after the first epoch, or lose it.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    callbacks = keras.tree.flatten([] if callbacks is None else callbacks)
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            raise TypeError(
                "`callbacks` must be a list of `keras.callbacks.Callback`. "
                f"Received: {callback!r} of type {type(callback).__name__}"
            )
        if isinstance(callback, keras.callbacks.TensorBoard):
            check_installed("`TensorBoard`", "tensorboard", TENSORBOARD)
        if isinstance(callback, keras.callbacks.OrbaxCheckpoint):
            _check_absolute(callback.directory)
    return callbacks


def _check_absolute(directory):
    """Raises an error if Orbax cannot write a folder.

    Raises:
        ValueError: for a relative path.
    """
    path = os.fspath(directory)
    if not os.path.isabs(path) and not files.is_remote(path):
        raise ValueError(
            "`directory` of `OrbaxCheckpoint` must be an absolute path: "
            f"`os.path.abspath({path!r})`. Received: directory={path!r}"
        )
