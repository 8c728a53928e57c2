"""Files that several processes write, that kills cut, and that fill disks."""

import errno
import multiprocessing
import os
import signal
import stat
import threading

import pytest

from keras_bond import files

START = multiprocessing.get_context("fork")


def write(path, content=b"new"):
    with files.atomic_file(path) as unfinished:
        unfinished.write_bytes(content)


def kept(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_two_processes_write_is_always_whole(tmp_path):
    """Pins: a name of the unfinished file that both use."""
    path = tmp_path / "numbers"

    def keep_writing(byte):
        while True:
            write(path, byte * 50_000)

    write(path, b"a" * 50_000)
    writers = [
        START.Process(target=keep_writing, args=(b,)) for b in (b"a", b"b")
    ]
    for writer in writers:
        writer.start()
    try:
        for _ in range(300):
            content = path.read_bytes()
            assert content in (b"a" * 50_000, b"b" * 50_000)
        assert all(writer.is_alive() for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    write(path)
    assert path.read_bytes() == b"new"
    assert kept(tmp_path) == ["numbers"]


def test_threads_do_not_take_each_others_folders(tmp_path):
    path, outer = tmp_path / "x", threading.Event()

    def other():
        write(path, b"inner")
        outer.set()

    with files.atomic_file(path) as unfinished:
        threading.Thread(target=other).start()
        assert outer.wait(10)
        unfinished.write_bytes(b"outer")
    assert path.read_bytes() == b"outer"


def test_killed_writers_leave_nothing_for_ever(tmp_path):
    """Whatever they wrote: the next write in the folder removes it."""

    def die(context, path):
        with context(path) as unfinished:
            if os.path.isdir(unfinished):
                unfinished = os.path.join(unfinished, "part")
            with open(unfinished, "wb") as file:
                file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    contexts = (files.atomic_file, files.atomic_folder, files.temporary_folder)
    for context in contexts:
        writer = START.Process(target=die, args=(context, tmp_path / "x"))
        writer.start()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        assert not (tmp_path / "x").exists()
        (left,) = kept(tmp_path)
        assert files.NAME.fullmatch(left)
        # Not of this package, however alike.
        (tmp_path / ".unfinished-business").mkdir(exist_ok=True)
        write(tmp_path / "another")
        assert kept(tmp_path) == [".unfinished-business", "another"]
        (tmp_path / "another").unlink()
        (tmp_path / ".unfinished-business").rmdir()


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    write(path, b"old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), files.atomic_file(path) as unfinished:
            unfinished.write_bytes(b"half")
            raise error
        assert path.read_bytes() == b"old" and kept(tmp_path) == ["x"]
    with pytest.raises(FileNotFoundError), files.atomic_file(path):
        pass
    assert path.read_bytes() == b"old" and kept(tmp_path) == ["x"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o777])
def test_a_replaced_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "secret"
    path.write_bytes(b"old")
    path.chmod(mode)
    write(path)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_new_file_follows_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write(tmp_path / "x")
        files.append_lines(tmp_path / "y", ["a"])
        with files.atomic_folder(tmp_path / "z") as folder:
            assert os.path.isdir(folder)
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in "xyz"]
    assert modes == [0o666 & ~umask] * 2 + [0o777 & ~umask]


def test_symbolic_links_are_followed(tmp_path):
    target, link = tmp_path / "disk" / "real", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(os.path.join("disk", "real"))
    for content in (b"new", b"newer"):  # At first it leads nowhere.
        write(link, content)
        assert link.is_symlink() and target.read_bytes() == content
    assert kept(target.parent) == ["real"]
    files.append_lines(link, ["more"])
    assert target.read_bytes() == b"more\n"  # "newer" was no whole line.


def test_a_folder_that_another_process_made_is_not_replaced(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(FileExistsError, match="`path` must not exist.*model"):
        with files.atomic_folder(path):
            path.mkdir()
            (path / "other").write_bytes(b"")
    assert kept(path) == ["other"] and kept(tmp_path) == ["model"]


@pytest.mark.parametrize(
    "before, kept_bytes",
    [
        (b"", b""),
        (b"a\n", b"a\n"),
        (b"a\nb", b"a\n"),
        (b"cut", b""),
        (b"a\n" + b"c" * 200_000, b"a\n"),
        (b"\n", b"\n"),
    ],
)
def test_a_cut_line_is_removed_before_others_follow(
    tmp_path, before, kept_bytes
):
    path = tmp_path / "lines"
    path.write_bytes(before)
    files.append_lines(path, ["x", "\u00e4"])
    files.append_lines(path, [])
    assert path.read_bytes() == kept_bytes + "x\n\u00e4\n".encode()


def test_lines_of_two_processes_are_whole(tmp_path):
    path = tmp_path / "lines"

    def keep_appending(character):
        for _ in range(50):
            files.append_lines(path, [character * 20_000] * 2)

    writers = [START.Process(target=keep_appending, args=(c,)) for c in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = path.read_text().splitlines()
    assert sorted(lines) == ["a" * 20_000] * 100 + ["b" * 20_000] * 100


def test_lines_that_do_not_fit_are_not_begun(tmp_path):
    """A process that may write 1000 bytes stands for a disk that is full."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "lines"
    files.append_lines(path, ["whole"])

    def append():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            files.append_lines(path, ["x" * 5000])
        except OSError as error:
            os._exit(error.errno)

    writer = START.Process(target=append)
    writer.start()
    writer.join()
    assert writer.exitcode == errno.EFBIG
    assert path.read_text() == "whole\n"


def test_a_disk_without_room_is_named(tmp_path):
    path = tmp_path / "not" / "yet" / "there"
    files.check_free_space(path, 10)
    with pytest.raises(OSError, match=r"room for .*Received: path='.*there'"):
        files.check_free_space(path, 2**60)
