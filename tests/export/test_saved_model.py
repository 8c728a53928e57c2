"""The folder that is served: what is in it, and how it comes into being."""

import json
import os
import shutil
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

import keras_bond
from keras_bond.export import processes
from keras_bond.export.serving import verify
from tests.export.conftest import LENGTHS
from tests.export.conftest import ROOT
from tests.tiny import PROMPTS
from tests.tiny import make_policy

DESCRIPTION = "assets.extra/keras_bond.json"
WARMUP = "assets.extra/tf_serving_warmup_requests"
# TensorFlow itself imports JAX where it is installed.
OTHERS = ("keras_bond", "keras_hub", "torch")


# What these start has the same files and TensorFlow, whatever the backend.
once = pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="it runs in a process with TensorFlow on every backend",
)


def run_alone(code, *arguments):
    """Runs Python in a process of its own; returns what it prints."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "KERAS_BACKEND": "tensorflow",
        },
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_a_fresh_process_with_tensorflow_alone_agrees(served):
    """Greedy tokens, text and warm-up, without Keras or this package."""
    code = (
        "import runpy, sys, json\n"
        "verify = runpy.run_path(sys.argv[1])['verify']\n"
        "report = verify(sys.argv[2])\n"
        f"report['others'] = [m for m in {OTHERS} if m in sys.modules]\n"
        "print(json.dumps(report))"
    )
    script = processes.SERVING / "verify.py"
    report = json.loads(run_alone(code, script, served.path))
    assert report["others"] == []
    assert report["examples"] == len(PROMPTS)
    assert report["warmup_requests"] == len(report["signatures"]) == 6


def change(served, folder, edit):
    """Copies a served model with another description; returns its folder."""
    shutil.copytree(served.path, folder)
    job = json.loads((folder / DESCRIPTION).read_text())
    edit(job)
    (folder / DESCRIPTION).write_text(json.dumps(job))
    return folder


@once
def test_other_tokens_do_not_pass(served, tmp_path):
    def edit(job):
        job["examples"][-1]["completion_ids"][-1] ^= 1

    path = change(served, tmp_path / "1", edit)
    with pytest.raises(ValueError, match="same tokens as `policy.generate`"):
        keras_bond.export.verify_saved_model(path)


@once
def test_other_warm_up_requests_do_not_pass(served, tmp_path):
    def edit(job):
        job["requests"][1][1]["seed"] = [1]

    path = change(served, tmp_path / "1", edit)
    with pytest.raises(ValueError, match="warm-up file must hold the request"):
        verify.verify(path)


XLA_MODEL = """
import sys
import keras
import tensorflow as tf
from keras_bond.export.serving import verify
sys.path.append("integration/serving")
import server_session

class Model(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((3,), tf.float32)])
    def update(self, x):
        return {"y": keras.ops.slice_update(x, [1], tf.constant([5.0]))}

model = Model()
tf.saved_model.save(model, sys.argv[1], signatures=model.update)
for check in (
    lambda: verify.check_operations(sys.argv[1]),
    lambda: server_session.ServerSession(sys.argv[1]).run(
        "serving_default", {"x": [1.0, 2.0, 3.0]}
    ),
):
    try:
        print("passed", check())
    except (ValueError, RuntimeError) as error:
        print(str(error).replace(chr(10), " "))
"""


@once
def test_xla_is_refused_at_export_and_by_the_session(tmp_path):
    """What Keras writes by itself; the session must be as strict as servers."""
    refused, failed = run_alone(XLA_MODEL, tmp_path).strip().splitlines()
    assert "does not run XLA or Python" in refused
    assert "XlaDynamicUpdateSlice" in refused
    assert "XLA compilation disabled" in failed


def test_weights_are_stored_once_and_adapters_merged(served, plain):
    for model in (served, plain):
        variables = model.policy.variables
        adapters = [v for v in variables if "lora" in v.path]
        assert bool(adapters) == (model is served)
        stored = tf.train.load_checkpoint(model.path / "variables/variables")
        shapes = stored.get_variable_to_shape_map()
        del shapes["_CHECKPOINTABLE_OBJECT_GRAPH"]
        expected = [tuple(v.shape) for v in variables if "lora" not in v.path]
        assert sorted(map(tuple, shapes.values())) == sorted(expected)


def test_the_description_tells_what_is_served(served, plain):
    job = json.loads((served.path / DESCRIPTION).read_text())
    assert job["stop_token_ids"] == [1, 4] and job["start_token_ids"] == [2]
    assert job["prompt_template"] == "a {prompt} b"
    assert job["policy"] == "Gemma3CausalLM" and job["dtype"] == "float32"
    assert (served.path / WARMUP).exists()
    assert not (plain.path / WARMUP).exists()
    # Nothing is left of the work.
    assert os.listdir(served.path.parent) == ["1"]


def test_low_precision_is_that_of_keras_on_tensorflow(tmp_path):
    """Compared there, as every backend rounds in its own way."""
    policy = make_policy("gemma3", scale=3.0, dtype="bfloat16")
    path = keras_bond.export.export_saved_model(
        policy, tmp_path / "low", prompts=PROMPTS, **LENGTHS
    )
    with open(os.path.join(path, DESCRIPTION)) as file:
        job = json.load(file)
    assert job["dtype"] == "bfloat16"
    assert len({example["completion"] for example in job["examples"]}) > 4


@pytest.fixture
def without_processes(monkeypatch):
    """Exports in no time: the tracing process only makes a folder."""

    def trace(folder):
        os.mkdir(os.path.join(folder, "model"))

    monkeypatch.setattr(processes, "trace", trace)


def export(policy, path, **arguments):
    arguments = {**LENGTHS, "verify": False, **arguments}
    return keras_bond.export.export_saved_model(policy, path, **arguments)


def test_versions_count_on_and_are_never_written_over(
    policy, tmp_path, without_processes
):
    path = tmp_path / "a" / "policy"
    assert export(policy, path) == str(path / "1")
    assert export(policy, path, version=7) == str(path / "7")
    (path / "notes").mkdir()
    assert export(policy, path) == str(path / "8")
    with pytest.raises(FileExistsError, match="`version` must not exist"):
        export(policy, path, version=7)
    assert sorted(os.listdir(path)) == ["1", "7", "8", "notes"]


def test_a_failure_leaves_nothing_behind(policy, tmp_path, monkeypatch):
    def trace(folder):
        processes._run(["-c", "raise SystemExit('out of luck')"])

    monkeypatch.setattr(processes, "trace", trace)
    with pytest.raises(RuntimeError, match="out of luck"):
        export(policy, tmp_path / "policy")
    assert os.listdir(tmp_path / "policy") == []


def test_what_does_not_pass_does_not_appear(
    policy, tmp_path, monkeypatch, without_processes
):
    def refuse(path):
        raise ValueError("not as `policy.generate` does")

    monkeypatch.setattr(processes, "verify", refuse)
    with pytest.raises(ValueError, match="not as `policy.generate`"):
        export(policy, tmp_path / "policy", verify=True)
    assert os.listdir(tmp_path / "policy") == []


def test_the_policy_keeps_its_sampler(policy, tmp_path, without_processes):
    policy.compile(sampler="top_k")
    before = policy.sampler
    export(policy, tmp_path / "policy")
    assert policy.sampler is before and policy.generate_function is None
