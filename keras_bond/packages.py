"""Packages: optional ones, and one that is noisy."""

import contextlib
import importlib.util
import os


def check_installed(what, extra, names):
    """Raises an error if optional packages are not installed.

    Nothing is imported: some of them take seconds.

    Args:
        what: str. What needs them, the beginning of the message.
        extra: str. The extra of keras_bond that installs them.
        names: list of str. The packages, as they are imported.

    Raises:
        ImportError: naming what to install.
    """
    missing = [name for name in names if not importlib.util.find_spec(name)]
    if missing:
        raise ImportError(
            f"{what} needs packages that are not installed: `pip install "
            f"{' '.join(missing)}`, or keras_bond with its extra "
            f"`{extra}`. Received: {missing} not installed"
        )


def import_quietly(name):
    """Imports a package without the lines that TensorFlow logs at its start.

    Some of them are written before it reads its log level.

    Args:
        name: str. `"keras_hub"`, which imports TensorFlow.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with silenced():
        importlib.import_module(name)


@contextlib.contextmanager
def silenced():
    """Returns a context in which nothing is written to the error stream.

    Compiled code, such as SentencePiece, writes to it as well.
    """
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
