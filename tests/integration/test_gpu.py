"""The GPU run in small: each figure is a line of JSON."""

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.one_backend
SCRIPT = pathlib.Path(__file__).parents[2] / "integration" / "gpu.py"


def run(*arguments):
    """The lines of a run on PyTorch, and its exit status."""
    command = [sys.executable, SCRIPT, "--quick", "--backends", "torch"]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return lines, done.returncode


def test_a_step_is_timed_by_phase_and_held_against_the_machine():
    """And a part that cannot run is named, with the reason."""
    lines, status = run("--parts", "step", "graph")
    assert status == 0, lines
    values = {line["figure"]: line["value"] for line in lines}
    assert {"learn", "step", "first step", "planned peak"} < set(values)
    assert 0 < values["decoding, share of copied bytes"] < 1
    assert 0 < values["learning, share of the product"] < 1
    assert values["recorded: completions are equal"] is True


def test_what_there_is_no_time_for_is_named():
    lines, status = run("--parts", "machine", "--seconds", "1")
    about = {"part": "machine", "backend": "torch"}
    assert lines == [{**about, "skipped": "the time is up"}]
    assert status == 0
