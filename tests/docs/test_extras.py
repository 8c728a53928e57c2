"""What the documentation shows runs where only the named extra is installed."""

import json
import os
import subprocess
import sys

import pytest

from tests.docs import extras
from tests.docs.conftest import ONLY_JAX

pytestmark = ONLY_JAX
EXTRAS = extras.optional(extras.read()[1])
# Figures of what was drawn before.
DRAWN_BEFORE = ("plots",)


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """What `only_extras.py` reports of each block that needs an extra."""
    results = tmp_path_factory.mktemp("extras") / "results.json"
    process = subprocess.run(
        [sys.executable, "-m", "tests.docs.only_extras", results],
        cwd=extras.ROOT,
        env={**os.environ, "PYTHONPATH": str(extras.ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(results.read_text())


def test_a_block_without_its_extra_is_told_which_one(tried):
    for line in tried:
        assert line["message"].startswith(
            ("ImportError: ", "ModuleNotFoundError: ")
        ), line
        assert line["extra"] is not None, line


@pytest.mark.parametrize("extra", EXTRAS)
def test_code_runs_with_its_extra_and_is_refused_without(extra, tried):
    found = [line for line in tried if line["extra"] == extra]
    assert found, "no block of the documentation needs it"
    for line in found:
        assert line["failure"] is None, line["failure"]
        if extra not in DRAWN_BEFORE:
            assert not line["drew"], line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pictures need matplotlib (extra `plots`).", {"plots"}),
        ('pip install ".[jax,hub]"', {"jax", "hub"}),
        ("plots of the extra cost", set()),
    ],
)
def test_extras_are_found_in_texts(text, expected):
    assert extras.named(text) == expected
