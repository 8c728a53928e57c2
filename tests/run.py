"""Runs the tests on every backend: `python tests/run.py [pytest arguments]`.

Keras has one backend a process, and compiled functions are kept as long as a
process lives: so large folders, and every file of the largest one, get their
own process on every backend, two at a time. They share what JAX has compiled.
Each prints its last line when it is done, and everything if it failed.
"""

import concurrent.futures
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
import time

BACKENDS = ("tensorflow", "jax", "torch")
AT_A_TIME = 2
# Beside the files of `training/`; the other folders are quick.
ALONE = ("examples", "export", "rollouts", "formulas", "distribution")
TESTS = pathlib.Path(__file__).resolve().parent
PASSED, NOTHING_SELECTED = 0, 5


def parts():
    """What is run by itself, lists of folders and files, longest first."""
    alone = [[path] for path in sorted(TESTS.glob("training/test_*.py"))]
    alone += [[TESTS / name] for name in ALONE]
    folders = {path.parent for path in TESTS.glob("*/test_*.py")}
    folders -= {TESTS / "training", *(path for (path,) in alone)}
    files = TESTS.glob("test_*.py")
    return [sorted(folders), *alone, sorted(files)]


def run(job, arguments):
    """Runs pytest on one part and backend; returns its exit status."""
    part, backend = job
    names = [str(path.relative_to(TESTS.parent)) for path in part]
    started = time.time()
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *names, *arguments],
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
        f"{backend:>10} | {minutes:4.1f} min | {', '.join(names)}: "
        + "\n".join(shown),
        flush=True,
    )
    return process.returncode


def main(arguments):
    jobs = list(itertools.product(parts(), BACKENDS))
    with (
        tempfile.TemporaryDirectory() as cache,
        concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool,
    ):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        statuses = list(pool.map(lambda job: run(job, arguments), jobs))
    passed = statuses.count(PASSED)
    failed = len(statuses) - passed - statuses.count(NOTHING_SELECTED)
    print("\nParts of the tests, on all backends:")
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0 or passed == 0)


if __name__ == "__main__":
    main(sys.argv[1:])
