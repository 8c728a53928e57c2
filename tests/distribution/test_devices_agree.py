"""Small runs of the distribution commands in the documentation, on JAX."""

import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import keras
import pytest

sys.path.append(
    str(pathlib.Path(__file__).resolve().parents[2] / "integration")
)

from tpu import times
from tpu.chips import Chip

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax",
    reason="Keras distributes on the JAX backend only",
)


def run(*command):
    flags = os.environ["XLA_FLAGS"].split()
    if "tpu" in command[0]:
        # The compiler for TPUs knows no flags of other processors.
        flags = [flag for flag in flags if not flag.startswith("--xla_cpu")]
    process = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": " ".join(flags),
        },
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


def test_eight_devices_do_what_one_does():
    """Draws equal, loss and weights to 1e-5, on four distributions."""
    command = ["--families", "gemma3", "--trainers", "JBond"]
    output = run("integration/many_devices.py", *command)
    assert output.count("draws same") == 8
    assert "2 of 2 agree" in output


def test_two_processes_do_what_one_does():
    output = run("integration/two_processes.py")
    assert "two scored [[6, 6, 6, 6, 6, 6], [6, 6, 6, 6, 6, 6]]" in output


@pytest.mark.parametrize(
    "mesh", [("v5e:1x1", "1x1", "2"), ("v5e:2x4", "2x4", "4")]
)
def test_a_step_compiles_for_chips_that_are_not_there(mesh):
    topology, shape, prompts = mesh
    output = run(
        "integration/tpu_compile.py",
        *("--preset", "tiny", "--topology", topology, "--mesh", shape),
        *("--prompts", prompts, "--lora", "2"),
        *("--prompt-length", "16", "--completion-length", "8"),
    )
    rollout = "rollout policy and anchor"
    for stage in (rollout, "score_with_anchor", "learn, anchor"):
        assert f"| {stage} |" in output
    assert ("all-reduce" in output) == (shape == "2x4")
    assert "fits." in output


def test_a_token_takes_as_long_as_weights_and_cache_are_read():
    """1,000 weights of 2 bytes, 4 prompts x 3 samples x 30 tokens of 5 bytes;
    at 1e6 bytes and 1e8 operations per second."""
    weights = SimpleNamespace(path="kernel", shape=(10, 100), dtype="bfloat16")
    cache = SimpleNamespace(num_bytes=lambda rows, length: 5 * rows * length)
    trainer = SimpleNamespace(
        policy=SimpleNamespace(variables=[weights]),
        rollout=SimpleNamespace(plan_draws=lambda inputs, counts: [counts]),
        decoder=SimpleNamespace(cache_builder=cache),
        num_policy_samples=1,
        num_anchor_samples=2,
    )
    arguments = SimpleNamespace(
        prompts=4,
        prompt_length=20,
        completion_length=10,
        lora=8,
        no_rematerialize=True,
    )
    said = times.least(trainer, arguments, Chip(1e9, 1e8, 1e6), 1)
    assert "3.80 ms (2.00 ms of weights, 1.80 ms of the cache" in said
    # 2 (160 + 120) and 4 x 240 operations for each weight.
    assert "0.04 s of decoding, 0.02 s of the rest" in said


def test_a_token_copies_no_cache():
    """In the program for a v5e, an update in place for each block."""
    output = run("integration/tpu/decode_copies.py", "gemma3")
    assert "gemma3: 0 copies" in output


def test_a_token_does_not_stack_the_caches_of_blocks():
    """Llama keeps those of all blocks in one tensor, `(24, 2, 2, 64, ...)`."""
    output = run("integration/tpu/decode_copies.py", "llama3")
    assert "llama3: " in output and "[24,2,2,64" not in output
