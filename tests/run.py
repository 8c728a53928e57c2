"""Runs the tests on every backend: `python tests/run.py [pytest arguments]`.

One process a backend, for Keras has one backend a process; two at a time, for
a test seldom keeps more than one core busy.
"""

import concurrent.futures
import os
import pathlib
import subprocess
import sys

# Slowest first.
BACKENDS = ("tensorflow", "jax", "torch")
AT_A_TIME = 2
ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(backend, arguments):
    """Runs pytest on one backend, line by line; returns its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        print(f"{backend:>10} | {line}", end="", flush=True)
    return process.wait()


def main(arguments):
    with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
        statuses = pool.map(lambda name: run(name, arguments), BACKENDS)
    failed = [name for name, status in zip(BACKENDS, statuses) if status]
    if failed:
        sys.exit(f"Tests failed on: {', '.join(failed)}")
    print(f"\nTests passed on all {len(BACKENDS)} backends.")


if __name__ == "__main__":
    main(sys.argv[1:])
