"""Atomic writes of files and folders."""

import contextlib
import os
import pathlib
import shutil
import tempfile


@contextlib.contextmanager
def atomic_file(path):
    """Writes a file under another name, and renames it when it is complete.

    If the process dies during the write, the old file is left intact.

    Args:
        path: str or path, in a folder that exists.

    Yields:
        `pathlib.Path` of a file in that folder, with the same suffix.
    """
    path = pathlib.Path(path)
    unfinished = path.with_name(f"unfinished-{path.name}")
    unfinished.unlink(missing_ok=True)
    try:
        yield unfinished
        # Otherwise a power cut could leave the new name without the data.
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(path):
    """Yields an empty folder next to `path` and deletes it afterwards.

    Args:
        path: str. What will be made in the folder; its parents are created.
    """
    parent, name = os.path.split(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    # The name is not a number, or a model server would take it for a version.
    folder = tempfile.mkdtemp(prefix=f".{name}-", dir=parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(path):
    """Yields a folder to fill, which becomes `path` if no error is raised.

    Args:
        path: str, which must not exist.
    """
    with temporary_folder(path) as folder:
        finished = os.path.join(folder, "finished")
        os.mkdir(finished)
        yield finished
        os.rename(finished, path)
