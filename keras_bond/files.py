"""Nothing half-written: a file comes into being beside, and is then renamed."""

import contextlib
import os
import pathlib


@contextlib.contextmanager
def replacing(path):
    """Yields a path to write to, and gives that file its name in the end.

    Whoever dies in the middle of a write leaves the old file.

    Args:
        path: str or path, in a folder that exists.

    Yields:
        `pathlib.Path` of a file in that folder, with the same ending.
    """
    path = pathlib.Path(path)
    unfinished = path.with_name(f"unfinished-{path.name}")
    unfinished.unlink(missing_ok=True)
    try:
        yield unfinished
        # So that not even a power cut leaves the new name without the data.
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
