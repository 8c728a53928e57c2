"""Runs the tests: `python tests/run.py [--quick] [pytest arguments]`.

Without arguments it runs everything on all three backends, in about half an
hour on two cores. With `--quick` it runs what needs no training, on one
backend, in under 3 minutes: that of `KERAS_BACKEND`, or the fastest that is
installed. Further arguments go to pytest, such as `-x` or `-k anchor`.

Keras has one backend per process, and a process keeps what it has compiled: so
the tests run in parts, each in a process of its own, two at a time. They share
what JAX has compiled. Each part prints its last line when it is done, and
everything if it failed.
"""

import argparse
import concurrent.futures
import importlib.util
import itertools
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
# Folders and files of each part, the longest part first, so that both workers
# end at about the same time. A file belongs to the first entry that matches;
# what matches none is added to the last part.
PARTS = (
    ("training/test_bond.py", "training/test_[go]*.py"),
    ("training/test_fit.py", "training/test_parts.py"),
    ("training/test_anchor*.py", "training/test_resume.py"),
    ("export", "distribution"),
    ("training/test_exact*.py", "training/test_binary*.py"),
    ("training",),
    ("formulas", "rollouts", "fuzz", "callbacks"),
    ("docs", "examples", "benchmarks", "integration"),
    ("",),
)
QUICK_PARTS = (
    ("rewards", "evaluation", "data"),
    ("rollouts", "planning", "formulas", "test_*.py"),
)
PASSED, NOTHING_SELECTED = 0, 5


def files(pattern):
    """The test files of a folder, or those that a pattern matches."""
    folder = TESTS / pattern
    paths = folder.rglob("test_*.py") if folder.is_dir() else None
    return sorted(paths if paths is not None else TESTS.glob(pattern))


def split(parts):
    """The name and the files of each part; a file is in one of them only."""
    seen, named = set(), []
    for patterns in parts:
        found = [path for pattern in patterns for path in files(pattern)]
        paths = [path for path in found if path not in seen]
        seen.update(paths)
        if paths:
            named.append((", ".join(filter(None, patterns)) or "rest", paths))
    return named


def run(job, arguments):
    """Runs pytest on one part and backend; returns its exit status."""
    (name, paths), backend = job
    started = time.time()
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *paths, *arguments],
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
    parts = split(QUICK_PARTS if options.quick else PARTS)
    backends = [quick_backend()] if options.quick else BACKENDS
    with (
        tempfile.TemporaryDirectory() as cache,
        concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool,
    ):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        jobs = itertools.product(parts, backends)
        statuses = list(pool.map(lambda job: run(job, arguments), jobs))
    passed = statuses.count(PASSED)
    failed = len(statuses) - passed - statuses.count(NOTHING_SELECTED)
    print(f"\nParts of the tests, on {', '.join(backends)}:")
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0 or passed == 0)


if __name__ == "__main__":
    main()
