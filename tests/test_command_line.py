"""What a process prints and takes before it does anything."""

import os
import pathlib
import re
import subprocess
import sys
import types

import keras
import pytest

from keras_bond import __main__ as command_line
from keras_bond.diagnosis.diagnose import DTYPES

ROOT = pathlib.Path(__file__).resolve().parents[1]

FAKE = """
class config:
    calls = []

    def set_visible_devices(devices, kind):
        config.calls.append((devices, kind))
"""
# `tensorflow` is a stand-in, first on the path.
HIDES = """
import sys

if sys.argv[1] == "before":
    import tensorflow
import keras_bond

assert ("tensorflow" in sys.modules) == (sys.argv[1] == "before")
import importlib.util

importlib.util.find_spec("tensorflow")
import tensorflow

assert tensorflow.config.calls == [([], "GPU"), ([], "TPU")]
"""


def run(arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="TensorFlow is not the backend"
)
@pytest.mark.parametrize("imported", ["before", "after"])
def test_tensorflow_sees_no_accelerator_of_another_backend(tmp_path, imported):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(FAKE)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = run(["-c", HIDES, imported], PYTHONPATH=path)
    assert process.returncode == 0, process.stderr[-2000:]


HEAVY = ("keras", "keras_hub", "numpy", "tensorflow", "jax", "torch")


@pytest.mark.one_backend
@pytest.mark.parametrize("arguments", [["--help"], [], ["doctor", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    process = run(["-X", "importtime", "-m", "keras_bond", *arguments])
    assert process.returncode == 0 and "doctor" in process.stdout
    imported = re.findall(r"\| +([\w.]+)$", process.stderr, re.MULTILINE)
    assert "argparse" in imported
    assert not set(imported) & set(HEAVY)


@pytest.mark.one_backend
def test_other_commands_get_the_whole_package():
    code = "import keras_bond; assert keras_bond.Bond"
    assert run(["-c", code, "-m", "keras_bond"]).returncode == 0


@pytest.mark.one_backend
def test_the_command_offers_the_precisions_of_the_doctor(capsys, monkeypatch):
    assert command_line.DTYPES == DTYPES
    report = types.SimpleNamespace(passed=False)
    monkeypatch.setattr("keras_bond.diagnosis.doctor", lambda dtype: report)
    assert command_line.main(["doctor"]) == 1
    assert "takes about a minute" in capsys.readouterr().out


QUIET = """
import sys

sys.path.insert(0, sys.argv[1])
if sys.argv[2] == "examples":
    import demo

    demo.set_backend("torch")
else:
    from keras_bond import __main__

    __main__.import_quietly("keras_hub")
import tensorflow
"""


@pytest.mark.skipif(
    keras.config.backend() == "tensorflow", reason="it logs where it is used"
)
@pytest.mark.one_backend
@pytest.mark.parametrize("who", ["examples", "command"])
def test_nothing_is_logged_at_the_start(who):
    process = run(["-c", QUIET, str(ROOT / "examples"), who])
    assert process.returncode == 0 and process.stderr == ""
