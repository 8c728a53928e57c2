"""What a GPU makes of a step: speed, memory and precision, in one command.

    python integration/gpu.py [--quick] [--backends jax torch]
        [--parts machine doctor ...] [--seconds 470]

Needs no network. Beside JAX or PyTorch with CUDA it needs the wheels of keras,
keras-hub, kagglehub, h5py, absl-py, optree, ml_dtypes, namex, rich, regex,
sentencepiece and tokenizers, and this repository; TensorFlow is not needed.
Where trl, transformers, peft and datasets are installed, TRL's RLOO takes the
same step. Prints one line of JSON for each figure, and one for each part that
was skipped or failed, with the reason. Each part is a process of its own, so
that it has all of the card's memory, and ends when the time is up.

- machine: memory, bytes per second of a copy, FLOP per second of a product
- step, step_1b: phases of a step of `Bond`; share of the machine's bandwidth in
  decoding and of its product's rate in learning; memory against `plan`
- graph: decoding on PyTorch with and without its recorded step
- trl: a step of TRL's RLOO
- doctor: `keras_bond.doctor` on the card
- precision: log-probabilities in float32 by default and at full precision

`--quick` is a tiny shape, for CPUs and tests.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARTS = (
    "machine step graph trl step_1b doctor precision"  # The first ones first.
).split()
BACKENDS = ("jax", "torch")
ONLY = {"graph": "torch", "trl": "torch"}


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny shape")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=470.0)
    arguments = parser.parse_args(argv)
    if arguments.backends is None:
        arguments.backends = [
            name for name in BACKENDS if importlib.util.find_spec(name)
        ]
    return arguments


def main(argv=None):
    """Runs all parts; returns whether none of them failed."""
    arguments = parse_arguments(argv)
    end, passed = time.monotonic() + arguments.seconds, True
    for part in arguments.parts:
        for backend in arguments.backends:
            if ONLY.get(part, backend) != backend:
                continue
            about = {"part": part, "backend": backend}
            if part == "trl" and (missing := missing_for_trl()):
                say(**about, skipped=f"not installed: {missing}")
                continue
            passed &= run_process(about, arguments.quick, end)
    return passed


def run_process(about, quick, end):
    """Runs a part until it ends or the time is up; its figures pass through."""
    left = end - time.monotonic()
    if left < 5:
        say(**about, skipped="the time is up")
        return True
    command = [sys.executable, "-m", "gpu_parts", about["part"]]
    command += ["--quick"] if quick else []
    paths = [
        str(ROOT),
        str(ROOT / "integration"),
        os.environ.get("PYTHONPATH", ""),
    ]
    environment = {
        **os.environ,
        "KERAS_BACKEND": about["backend"],
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    process = subprocess.Popen(
        command, env=environment, text=True, stderr=subprocess.PIPE
    )
    try:
        _, errors = process.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        say(**about, skipped="the time is up")
        return True
    if process.returncode:
        lines = errors.strip().splitlines() or [""]
        say(**about, failed=lines[-1], status=process.returncode)
    return process.returncode == 0


def missing_for_trl():
    names = ("trl", "transformers", "peft", "datasets", "tokenizers")
    return [name for name in names if not importlib.util.find_spec(name)]


def say(**facts):
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
