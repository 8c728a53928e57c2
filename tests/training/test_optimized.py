"""A training with XLA as users have it.

The other tests compile without optimizations, and those on TensorFlow mostly
without XLA: see `tests/conftest.py` and `tests/tiny.py`.
"""

import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

from tests.training import test_golden

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAINING = """
import json
import os
import pathlib
import sys

from tests.training import test_golden

assert "XLA_FLAGS" not in os.environ
_, _, found = test_golden.train(
    "jbond", num_layers=1, compile_arguments={}, prompt_buckets=None
)
pathlib.Path(sys.argv[1]).write_text(json.dumps(found))
"""


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="PyTorch is not compiled by XLA"
)
def test_an_optimized_run_is_the_quickly_compiled_one(tmp_path):
    """Completions token for token, logs and weights within rounding.

    Pins: a program that only unoptimized XLA gets right, or that XLA cannot
    compile on TensorFlow. With one layer and one bucket, of which
    more would be compiled in the same way.
    """
    file = tmp_path / "found.json"
    unset = ("XLA_FLAGS", "TF_XLA_FLAGS")
    kept = {k: v for k, v in os.environ.items() if k not in unset}
    process = subprocess.run(
        [sys.executable, "-c", TRAINING, str(file)],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads(file.read_text())
    _, _, expected = test_golden.train(
        "jbond", num_layers=1, prompt_buckets=None
    )
    test_golden.assert_same(found, expected)
