"""Runs the tests on every backend: `python tests/run.py [pytest arguments]`.

One process a backend, for Keras has one backend a process.
"""

import os
import pathlib
import subprocess
import sys

BACKENDS = ("jax", "tensorflow", "torch")
ROOT = pathlib.Path(__file__).resolve().parents[1]


def main(arguments):
    failed = []
    for backend in BACKENDS:
        print(f"\n=== tests on {backend} ===", flush=True)
        environment = {**os.environ, "KERAS_BACKEND": backend}
        command = [sys.executable, "-m", "pytest", "-q", *arguments]
        if subprocess.run(command, cwd=ROOT, env=environment).returncode:
            failed.append(backend)
    if failed:
        sys.exit(f"Tests failed on: {', '.join(failed)}")
    print("\nTests passed on all backends.")


if __name__ == "__main__":
    main(sys.argv[1:])
