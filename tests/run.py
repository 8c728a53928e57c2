"""Runs the tests on every backend: `python tests/run.py [pytest arguments]`.

Keras has one backend a process, and compiled functions are kept as long as a
process lives: so every folder, and every file of the largest one, gets its own
process on every backend, two at a time. They share what JAX has compiled. Each
prints its last line when it is done, and everything if it failed.
"""

import concurrent.futures
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile

BACKENDS = ("tensorflow", "jax", "torch")
AT_A_TIME = 2
TESTS = pathlib.Path(__file__).resolve().parent
PASSED, NOTHING_SELECTED = 0, 5


def parts():
    """The folders and files that are run by themselves, longest first."""
    training = sorted(TESTS.glob("training/test_*.py"))
    folders = sorted(
        folder
        for folder in TESTS.iterdir()
        if any(folder.glob("test_*.py")) and folder.name != "training"
    )
    return [*training, *folders, *sorted(TESTS.glob("test_*.py"))]


def run(job, arguments):
    """Runs pytest on one part and backend; returns its exit status."""
    part, backend = job
    name = part.relative_to(TESTS.parent)
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(name), *arguments],
        cwd=TESTS.parent,
        env={**os.environ, "KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    failed = process.returncode not in (PASSED, NOTHING_SELECTED)
    lines = process.stdout.strip().splitlines() or ["no output"]
    shown = lines if failed else lines[-1:]
    print(f"{backend:>10} | {name}: " + "\n".join(shown), flush=True)
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
