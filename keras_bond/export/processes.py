"""Runs the parts that live in processes of their own."""

import json
import os
import pathlib
import subprocess
import sys

SERVING = pathlib.Path(__file__).parent / "serving"
ROOT = SERVING.parents[2]


def trace(folder):
    """Lets Keras on TensorFlow write the served model of a job folder.

    Raises:
        RuntimeError: with the last words of the process, if it fails.
    """
    _run(["-m", "keras_bond.export.serving.trace", str(folder)])


def verify(path):
    """Lets TensorFlow alone check a served model.

    Returns:
        dict, what was checked.

    Raises:
        ValueError: if the model does not pass.
        RuntimeError: with the last words of the process, if it fails.
    """
    script = str(SERVING / "verify.py")
    # `-P`: the folder of the script must not become a place of modules.
    report = json.loads(_run(["-P", script, str(path)]).splitlines()[-1])
    if "error" in report:
        raise ValueError(report["error"])
    return report


def _run(arguments):
    environment = {
        **os.environ,
        # Whatever the caller can import: its own classes of rewards.
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "KERAS_BACKEND": "tensorflow",
        # The caller's own model may fill the accelerator.
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    # TensorFlow dies of a flag that only the XLA of JAX knows.
    environment.pop("XLA_FLAGS", None)
    process = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    if process.returncode:
        raise RuntimeError(
            f"`python {' '.join(arguments)}` ended with status "
            f"{process.returncode}. Its last words:\n{process.stderr[-4000:]}"
        )
    return process.stdout
