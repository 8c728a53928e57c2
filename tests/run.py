"""Runs the tests: `python tests/run.py [--quick] [pytest arguments]`.

Without arguments it runs everything on all three backends, in 40 minutes on two
cores. With `--quick` it runs what needs no training, on one backend, in under 3
minutes: that of `KERAS_BACKEND`, or the fastest that is installed. Further
arguments go to pytest, such as `-x` or `-k anchor`.

A test that no line of a backend can break, or that costs much and tests what
others test on each backend, has the mark `one_backend`: it runs on the fastest
only.

Keras has one backend per process, and a process keeps what it has compiled: so
the tests run in parts, each in a process of its own, two at a time. They share
what JAX has compiled. Each part prints its last line when it is done, and
everything if it failed.
"""

import argparse
import concurrent.futures
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import time

BACKENDS = ("tensorflow", "jax", "torch")
FASTEST_FIRST = ("torch", "jax", "tensorflow")
AT_A_TIME = 2
TESTS = pathlib.Path(__file__).resolve().parent
# Folders and files of each part, and the minutes that they take on each of
# `BACKENDS`. The longest begin first, so that both workers end at about the
# same time. A file belongs to the first entry that matches; what matches none
# is added to the last part.
PARTS = {
    ("training/test_bond.py", "training/test_[go]*.py"): (3.5, 2, 1),
    ("training/test_fit.py", "training/test_parts.py"): (3, 1.5, 1),
    ("training/test_anchor*.py", "training/test_resume.py"): (3, 1, 1),
    ("export", "distribution"): (2, 4, 2),
    ("training/test_exact*.py", "training/test_binary*.py"): (1, 0.7, 2),
    ("training",): (7, 4.5, 3.5),
    ("formulas", "rollouts", "fuzz", "callbacks"): (3, 2.5, 1),
    ("examples",): (0.3, 7, 0.3),
    ("docs", "benchmarks", "integration"): (0.7, 5.5, 0.5),
    ("diagnosis", "planning"): (2.5, 1.5, 1),
    ("families",): (1.5, 1, 1.5),
    ("",): (1, 0.7, 3),
}
QUICK_PARTS = {
    ("rewards", "evaluation", "data"): (1, 1, 1),
    ("rollouts", "planning", "formulas", "test_*.py"): (1, 1, 1),
}
PASSED, NOTHING_SELECTED = 0, 5


def files(pattern):
    """The test files of a folder, or those that a pattern matches."""
    folder = TESTS / pattern
    paths = folder.rglob("test_*.py") if folder.is_dir() else None
    return sorted(paths if paths is not None else TESTS.glob(pattern))


def jobs(parts, backends):
    """Name, backend and selection of tests of each process, the longest first.

    A file is in one part only.
    """
    fastest = min(backends, key=FASTEST_FIRST.index)
    seen, found = set(), []
    for patterns, minutes in parts.items():
        paths = {path for pattern in patterns for path in files(pattern)} - seen
        seen |= paths
        name = ", ".join(filter(None, patterns)) or "rest"
        for backend in backends:
            length = minutes[BACKENDS.index(backend)]
            marks = () if backend == fastest else ("-m", "not one_backend")
            found.append((length, (name, backend, [*marks, *sorted(paths)])))
    return [job for _, job in sorted(found, key=lambda one: -one[0])]


def run(job, arguments):
    """Runs pytest on one part and backend; returns its exit status."""
    name, backend, selection = job
    started = time.time()
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *selection, *arguments],
        cwd=TESTS.parent,
        env={**os.environ, "KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    failed = process.returncode not in (PASSED, NOTHING_SELECTED)
    lines = process.stdout.strip().splitlines() or ["no output"]
    shown = lines if failed else lines[-1:]
    minutes = (time.time() - started) / 60
    print(
        f"{backend:>10} | {minutes:4.1f} min | {name}: " + "\n".join(shown),
        flush=True,
    )
    return process.returncode


def quick_backend():
    """That of `KERAS_BACKEND`, or the fastest that is installed."""
    chosen = os.environ.get("KERAS_BACKEND")
    installed = filter(importlib.util.find_spec, FASTEST_FIRST)
    return chosen or next(installed)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="what needs no training, on one backend, in under 3 minutes",
    )
    options, arguments = parser.parse_known_args()
    backends = [quick_backend()] if options.quick else BACKENDS
    found = jobs(QUICK_PARTS if options.quick else PARTS, backends)
    with (
        tempfile.TemporaryDirectory() as cache,
        concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool,
    ):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        statuses = list(pool.map(lambda job: run(job, arguments), found))
    passed = statuses.count(PASSED)
    failed = len(statuses) - passed - statuses.count(NOTHING_SELECTED)
    print(f"\nParts of the tests, on {', '.join(backends)}:")
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0 or passed == 0)


if __name__ == "__main__":
    main()
