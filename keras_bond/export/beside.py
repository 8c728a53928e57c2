"""Nothing half-written: files come into being beside, and are then renamed."""

import contextlib
import os
import shutil
import tempfile


@contextlib.contextmanager
def workshop(path):
    """Yields an empty folder beside `path`, which is gone afterwards.

    Args:
        path: str. What the work will become.
    """
    parent, name = os.path.split(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    # Not a number, so that a model server does not take it for a version.
    folder = tempfile.mkdtemp(prefix=f".{name}-", dir=parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def written_beside(path):
    """Yields a folder to fill, which becomes `path` if all goes well.

    Args:
        path: str, which must not exist.
    """
    with workshop(path) as folder:
        finished = os.path.join(folder, "finished")
        os.mkdir(finished)
        yield finished
        os.rename(finished, path)
