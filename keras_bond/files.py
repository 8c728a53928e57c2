"""Atomic writes of files and folders, and files that grow by lines."""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# What `temporary_folder` makes. The name is not a number, or a model server
# would take it for a version.
PREFIX = ".keras_bond-unfinished-"
NAME = re.compile(re.escape(PREFIX) + r"[a-z0-9_]{8}")
LOCK = "lock"
SPARE_BYTES = 2**20
BLOCK_BYTES = 2**16


def is_remote(path):
    """Whether a path names a bucket, such as `gs://bucket/run`."""
    return "://" in str(path)


@contextlib.contextmanager
def atomic_file(path):
    """Writes a file in a temporary folder, and moves it when it is complete.

    If the process dies during the write, the old file is left intact. Several
    processes may write the same path: the file is always that of one of them,
    and complete. A file that is replaced keeps its mode and, where the system
    allows it, its owner; a symbolic link is followed.

    Args:
        path: str or path, in a folder that exists.

    Yields:
        `pathlib.Path` of a file of the same name, on the same file system.
    """
    path = pathlib.Path(os.path.realpath(path))
    with _unfinished(path.parent) as folder:
        unfinished = folder / path.name
        yield unfinished
        # Otherwise a power cut could leave the new name without the data.
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        if path.exists():
            _copy_access(path, unfinished)
        os.replace(unfinished, path)


@contextlib.contextmanager
def temporary_folder(path):
    """Yields an empty folder next to `path` and deletes it afterwards.

    Args:
        path: str. What will be made in the folder; its parents are created.
    """
    parent = pathlib.Path(os.path.abspath(path)).parent
    parent.mkdir(parents=True, exist_ok=True)
    with _unfinished(parent) as folder:
        yield str(folder)


@contextlib.contextmanager
def atomic_folder(path):
    """Yields a folder to fill, which becomes `path` if no error is raised.

    Args:
        path: str, which must not exist.

    Raises:
        FileExistsError: if another process has made `path` in the meantime.
    """
    with temporary_folder(path) as folder:
        finished = os.path.join(folder, "finished")
        os.mkdir(finished)
        yield finished
        move_folder(finished, path)


def move_folder(folder, path):
    """Renames a folder, which replaces nothing.

    Raises:
        FileExistsError: if there is a file or folder at `path`.
    """
    try:
        os.rename(folder, path)
    except OSError as error:
        if not os.path.lexists(path):
            raise
        raise FileExistsError(
            "`path` must not exist, but another process has made it in the "
            "meantime: move it away, or choose another. "
            f"Received: path={str(path)!r}"
        ) from error


def append_lines(path, lines):
    """Appends lines to a file, all or none.

    A last line without an end, which a killed process has left, is removed
    first. Several processes may append to the same path.

    Args:
        path: str or path, in a folder that exists.
        lines: list of str without line ends.

    Raises:
        OSError: if they cannot be written; the file is then as before.
    """
    content = "".join(f"{line}\n" for line in lines)
    with open(path, "ab+", buffering=0) as file:
        _lock(file, waits=True)
        end = _end_of_last_line(file)
        file.truncate(end)
        try:
            left = memoryview(content.encode("utf-8", "backslashreplace"))
            while left:
                left = left[file.write(left) :]
        except BaseException:
            file.truncate(end)
            raise


def check_free_space(path, needed):
    """Raises an error if the disk of a path has too little room.

    HDF5, in which Keras writes weights, ends the process when a disk is full,
    so that there would be no error to handle.

    Args:
        path: str or path that need not exist.
        needed: int. Bytes to write.

    Raises:
        OSError: naming the bytes that are needed and free.
    """
    folder = pathlib.Path(os.path.realpath(path)).parent
    while not folder.exists():
        folder = folder.parent
    free, needed = shutil.disk_usage(folder).free, needed + SPARE_BYTES
    if free < needed:
        raise OSError(
            "`path` must be on a disk with room for what is written: delete "
            "files, or choose another disk. Received: "
            f"path={str(path)!r}, {needed:,} bytes needed, {free:,} free"
        )


@contextlib.contextmanager
def _unfinished(parent):
    """Yields a folder for a write, and removes those of killed processes.

    A folder holds a file that its process keeps locked: the system unlocks it
    when the process ends, however it ends.
    """
    _remove_left_overs(parent)
    folder, lock = _locked_folder(parent)
    try:
        with lock:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _locked_folder(parent):
    while True:
        folder = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        # Until it is locked, another process may remove it.
        with contextlib.suppress(FileNotFoundError):
            lock = open(folder / LOCK, "wb")
            if _lock(lock) is not False and (folder / LOCK).exists():
                return folder, lock
            lock.close()


def _remove_left_overs(parent):
    try:
        folders = [x for x in parent.iterdir() if NAME.fullmatch(x.name)]
    except PermissionError:
        folders = []
    for folder in folders:
        with contextlib.suppress(OSError), open(folder / LOCK, "ab") as lock:
            if _lock(lock):
                shutil.rmtree(folder, ignore_errors=True)


def _lock(file, waits=False):
    """Locks a file until it is closed.

    Returns:
        bool, False if another has locked it; `None` where nothing can be
        locked.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _copy_access(source, target):
    """Gives a file the mode of another and, where allowed, its owner."""
    status = os.stat(source)
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):
            os.chown(target, status.st_uid, status.st_gid)
    # Last, because a change of the owner can take bits of the mode away.
    os.chmod(target, status.st_mode & 0o7777)


def _end_of_last_line(file):
    """Bytes up to the last line end, found from the end of a file."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(end - BLOCK_BYTES, 0)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
