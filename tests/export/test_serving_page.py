"""The requests of docs/serving.md, word for word except for the ports."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.export.conftest import ROOT

DOCKER_SCRIPT = ROOT / "integration" / "serving" / "serve_docker.py"


def blocks(language):
    """The code blocks of the page before what explains the export."""
    text = (ROOT / "docs" / "serving.md").read_text()
    text = text.split("\n## What the export does")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_rest_request_is_answered(served):
    command = shlex.split(blocks("shell")[1])
    assert command[:2] == [
        "curl",
        "http://localhost:8501/v1/models/my_policy:predict",
    ]
    body = json.loads(command[command.index("-d") + 1])
    (answer,) = served.rest(body)["predictions"]
    (row,) = body["instances"]
    inputs = {name: [value] for name, value in row.items()}
    assert [answer] == served.ask("generate", **inputs) and answer


def test_the_grpc_request_is_answered(served, capsys):
    code = blocks("python")[1]
    assert code.count("localhost:8500") == 1
    names = {}
    ports = f"localhost:{served.ports['grpc']}"
    exec(code.replace("localhost:8500", ports), names)
    printed = json.loads(capsys.readouterr().out)
    inputs = {"prompts": ["Is 2 prime?"], "completions": ["Yes."]}
    expected = served.ask("score", **inputs)["log_probs"]
    assert printed == pytest.approx(expected) and printed[0] < 0


def test_the_docker_command_serves_what_was_exported():
    command = shlex.split(blocks("shell")[0])
    assert command[:2] == ["docker", "run"]
    assert command[-1] == "tensorflow/serving"
    assert "MODEL_NAME=my_policy" in command
    assert "$PWD/served/my_policy:/models/my_policy" in command
    assert '"served/my_policy"' in blocks("python")[0]


def test_the_server_can_replay_the_warm_up(served):
    """Parsed by the server's own protocol, answered by its own session."""
    file = served.path / "assets.extra" / "tf_serving_warmup_requests"
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(str(file))
    ]
    requests = [log.predict_log.request for log in logs]
    assert {r.model_spec.name for r in requests} == {"my_policy"}
    assert sorted(r.model_spec.signature_name for r in requests) == [
        "generate",
        "generate_tokens",
        "sample",
        "score",
        "score_tokens",
        "serving_default",
    ]
    channel = grpc.insecure_channel(f"localhost:{served.ports['grpc']}")
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    for request in requests:
        for tensor in stub.Predict(request).outputs.values():
            value = tf.make_ndarray(tensor)
            assert value.dtype.kind != "f" or np.isfinite(value).all()
    requests[0].inputs.clear()
    with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
        stub.Predict(requests[0])


def test_the_docker_script_finds_differences(served, monkeypatch):
    spec = importlib.util.spec_from_file_location("docker", DOCKER_SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    url = f"http://127.0.0.1:{served.ports['rest']}/v1/models/my_policy"
    assert script.differences(url, served.path) == []
    ask = script.ask
    monkeypatch.setattr(
        script,
        "ask",
        lambda url, body: {
            "predictions": ["x", *ask(url, body)["predictions"][1:]]
        },
    )
    ((_, _, answered),) = script.differences(url, served.path)
    assert answered == "x"


def test_the_docker_script_says_when_it_cannot_run(served):
    process = subprocess.run(
        [sys.executable, DOCKER_SCRIPT, served.path],
        env={"PATH": ""},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0 and "Skipped: no Docker" in process.stdout
