"""Small runs of the distribution commands in the documentation, on JAX."""

import os
import pathlib
import subprocess
import sys

import keras
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax",
    reason="Keras distributes on the JAX backend only",
)


def run(*command):
    process = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
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


def test_a_token_copies_no_cache():
    """In the program for a v5e, an update in place for each block."""
    output = run("integration/tpu/decode_copies.py", "gemma3")
    assert "gemma3: 0 copies" in output


def test_a_token_does_not_stack_the_caches_of_blocks():
    """Llama keeps those of all blocks in one tensor, `(24, 2, 2, 64, ...)`."""
    output = run("integration/tpu/decode_copies.py", "llama3")
    assert "llama3: " in output and "[24,2,2,64" not in output
