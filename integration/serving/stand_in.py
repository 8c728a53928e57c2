"""Answers REST and gRPC requests as TensorFlow Serving does, without it.

    python integration/serving/stand_in.py served/my_policy/1

The network interface of the server is rebuilt for `predict`; the model runs in
a session without XLA, see `server_session`. Prints its ports when ready.
"""

import argparse
import concurrent.futures
import http.server
import json
import pathlib

import grpc
import numpy as np
import tensorflow as tf
from server_session import ServerSession
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """The gRPC interface: `Predict`."""

    def __init__(self, session):
        self.session = session

    def Predict(self, request, context):
        try:
            return predict(self.session, request)
        except (KeyError, RuntimeError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))


def predict(session, request):
    """Answers a `PredictRequest` with a `PredictResponse`."""
    signature = request.model_spec.signature_name or "serving_default"
    inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
    response = predict_pb2.PredictResponse()
    response.model_spec.CopyFrom(request.model_spec)
    for name, value in session.run(signature, inputs).items():
        response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
    return response


def predict_json(session, body):
    """Answers the body of a REST request, in rows or in columns."""
    signature = body.get("signature_name", "serving_default")
    names = list(session.signatures[signature].inputs)
    if "instances" in body:
        rows = body["instances"]
        if not isinstance(rows[0], dict):
            rows = [{names[0]: row} for row in rows]
        inputs = {name: [row[name] for row in rows] for name in names}
    else:
        inputs = body["inputs"]
        if not isinstance(inputs, dict):
            inputs = {names[0]: inputs}
    columns = {
        name: _to_json(value)
        for name, value in session.run(signature, inputs).items()
    }
    if "inputs" in body:
        return {"outputs": _bare(columns)}
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    return {"predictions": [_bare(row) for row in rows]}


def _bare(named):
    """A single output goes without its name."""
    return next(iter(named.values())) if len(named) == 1 else named


def _to_json(value):
    if value.dtype == object:
        value = np.vectorize(bytes.decode, otypes=[object])(value)
    return value.tolist()


class Handler(http.server.BaseHTTPRequestHandler):
    """The REST interface: `POST /v1/models/NAME:predict`."""

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        try:
            body = json.loads(self.rfile.read(length))
            status, answer = 200, predict_json(self.server.session, body)
        except (KeyError, RuntimeError, ValueError) as error:
            status, answer = 400, {"error": str(error)}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path, help="folder of a version")
    parser.add_argument("--grpc-port", type=int, default=8500)
    parser.add_argument("--rest-port", type=int, default=8501)
    arguments = parser.parse_args()
    session = ServerSession(arguments.model)
    pool = concurrent.futures.ThreadPoolExecutor(1)
    server = grpc.server(pool)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(session), server
    )
    grpc_port = server.add_insecure_port(f"127.0.0.1:{arguments.grpc_port}")
    server.start()
    rest = http.server.HTTPServer(("127.0.0.1", arguments.rest_port), Handler)
    rest.session = session
    print(json.dumps({"grpc": grpc_port, "rest": rest.server_port}), flush=True)
    rest.serve_forever()


if __name__ == "__main__":
    main()
