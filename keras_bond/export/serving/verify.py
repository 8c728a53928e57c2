"""Checks a served model: `python -P verify.py MODEL`, with TensorFlow alone.

Runs where neither Keras nor keras_bond is imported, as in the server.
"""

import json
import os
import sys

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the tokenizer's operations)
from tensorflow.core.protobuf import saved_model_pb2

EXTRA = "assets.extra"
DESCRIPTION = "keras_bond.json"
WARMUP = "tf_serving_warmup_requests"
# Operations that are not TensorFlow's own, and that the server has built in.
TOKENIZER_OPERATIONS = {
    "SentencepieceOp",
    "SentencepieceTokenizeOp",
    "SentencepieceDetokenizeOp",
}
REFUSED = ("Xla", "PyFunc", "EagerPyFunc")


def check_operations(path):
    """Refuses operations that the stock server does not run.

    Returns:
        int, the number of different operations.

    Raises:
        ValueError: naming the operations.
    """
    model = saved_model_pb2.SavedModel()
    with open(os.path.join(path, "saved_model.pb"), "rb") as file:
        model.ParseFromString(file.read())
    (meta_graph,) = model.meta_graphs
    graph = meta_graph.graph_def
    nodes = [graph.node, *(f.node_def for f in graph.library.function)]
    operations = {node.op for body in nodes for node in body}
    refused = {
        name
        for name in operations - TOKENIZER_OPERATIONS
        if name.startswith(REFUSED) or not hasattr(tf.raw_ops, name)
    }
    if refused:
        raise ValueError(
            "The served model must hold operations of TensorFlow and of its "
            "SentencePiece tokenizer only, none of XLA or Python: the stock "
            f"server refuses them. Received: {sorted(refused)}"
        )
    return len(operations)


def check_greedy(signatures, examples):
    """Compares the served greedy output with what was recorded at export.

    Returns:
        int, the number of examples.

    Raises:
        ValueError: with the prompt and both completions.
    """
    prompts = [example["prompt"] for example in examples]
    ids = tf.ragged.constant([e["prompt_ids"] for e in examples], tf.int32)
    tokens = signatures["generate_tokens"](
        prompt_ids=ids.to_tensor(),
        prompt_lengths=tf.cast(ids.row_lengths(), tf.int32),
        temperature=tf.zeros(len(examples)),
        seed=tf.zeros(len(examples), tf.int32),
    )
    texts = signatures["serving_default"](prompts=tf.constant(prompts))
    for example, row, length, text in zip(
        examples,
        tokens["completion_ids"].numpy().tolist(),
        tokens["completion_lengths"].numpy(),
        texts["completions"].numpy(),
    ):
        served = row[:length], text.decode()
        expected = example["completion_ids"], example["completion"]
        if served != expected:
            raise ValueError(
                "The served model must answer as `policy.generate` does with "
                "greedy sampling. Where an accelerator computes less exactly "
                "than its dtype says, a near-tie may fall the other way; then "
                "`verify=False` exports nevertheless. Received: "
                f"prompt={example['prompt']!r}, {served} served, {expected} "
                "expected"
            )
    return len(examples)


def replay_warmup(path, signatures, job):
    """Runs the warm-up requests: one that fails stops a server's loading.

    Returns:
        int, the number of requests.

    Raises:
        ValueError: if the file holds other requests than the description, or
            an answer is not finite.
    """
    if not job["warmup"]:
        return 0
    file = os.path.join(path, EXTRA, WARMUP)
    found = [r.numpy() for r in tf.data.TFRecordDataset(file)]
    if found != [encode_request(job["name"], *r) for r in job["requests"]]:
        raise ValueError(
            f"The warm-up file must hold the requests that {DESCRIPTION} "
            f"lists. Received: {len(found)} others in {file}"
        )
    for name, inputs in job["requests"]:
        outputs = signatures[name](**as_tensors(inputs))
        for key, value in outputs.items():
            if value.dtype.is_floating and not np.isfinite(value).all():
                raise ValueError(
                    "The served model must answer with finite numbers. "
                    f"Received: `{name}` with {key}={value.numpy()}"
                )
    return len(found)


def write_warmup(path, job):
    """Writes the requests that a server replays before it says it is ready."""
    file = os.path.join(path, EXTRA, WARMUP)
    with tf.io.TFRecordWriter(file) as writer:
        for name, inputs in job["requests"]:
            writer.write(encode_request(job["name"], name, inputs))


def as_tensors(inputs):
    """Turns the lists of a request into tensors."""
    dtypes = {"prompts": "string", "completions": "string"}
    dtypes["temperature"] = "float32"
    return {
        name: tf.constant(value, dtypes.get(name, "int32"))
        for name, value in inputs.items()
    }


def encode_request(model, signature, inputs):
    """Returns the bytes of a `tensorflow.serving.PredictionLog`.

    Five messages of the server's protocol, written by hand: the package that
    has them wants a whole TensorFlow of its own version.

    Args:
        model, signature: str.
        inputs: dict of lists.
    """
    spec = _field(1, model.encode()) + _field(3, signature.encode())
    request = _field(1, spec)
    for name, tensor in as_tensors(inputs).items():
        proto = tf.make_tensor_proto(tensor).SerializeToString()
        request += _field(2, _field(1, name.encode()) + _field(2, proto))
    predict_log = _field(1, request)
    return _field(6, predict_log)


def _field(number, payload):
    """A length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value):
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def verify(path):
    """Runs every check.

    Returns:
        dict, what was checked.
    """
    with open(os.path.join(path, EXTRA, DESCRIPTION)) as file:
        job = json.load(file)
    operations = check_operations(path)
    signatures = tf.saved_model.load(path).signatures
    return {
        "operations": operations,
        "examples": check_greedy(signatures, job["examples"]),
        "warmup_requests": replay_warmup(path, signatures, job),
        "signatures": sorted(signatures),
    }


if __name__ == "__main__":
    try:
        print(json.dumps(verify(sys.argv[1])))
    except ValueError as error:
        print(json.dumps({"error": str(error)}))
