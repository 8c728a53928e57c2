"""Subprocesses that trace and verify served models."""

import json
import os
import pathlib
import subprocess
import sys

SERVING = pathlib.Path(__file__).parent / "serving"
ROOT = SERVING.parents[2]


def trace(folder):
    """Writes the served model of a job folder, with Keras on TensorFlow.

    Raises:
        RuntimeError: if the process fails, with the end of its error output.
    """
    _run(["-m", "keras_bond.export.serving.trace", str(folder)])


def verify(path):
    """Checks a served model in a process without Keras.

    Returns:
        dict of what was checked.

    Raises:
        ValueError: if the model does not pass.
        RuntimeError: if the process fails, with the end of its error output.
    """
    script = str(SERVING / "verify.py")
    # `-P` keeps the folder of the script out of `sys.path`, where its modules
    # would shadow others.
    report = json.loads(_run(["-P", script, str(path)]).splitlines()[-1])
    if "error" in report:
        raise ValueError(report["error"])
    return report


def _run(arguments):
    environment = {
        **os.environ,
        # The process must import what the caller can: classes of rewards.
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "KERAS_BACKEND": "tensorflow",
        # The caller's model may fill the memory of the accelerator.
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    # TensorFlow aborts on flags that only the XLA of JAX knows.
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
            f"{process.returncode}. Its error output ends with:\n"
            f"{process.stderr[-4000:]}"
        )
    return process.stdout
