"""Verification of a served model: `python -P verify.py MODEL`.

It imports TensorFlow but neither Keras nor keras_bond, like the server.
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
# Operations outside TensorFlow that are built into the server.
TOKENIZER_OPERATIONS = {
    "SentencepieceOp",
    "SentencepieceTokenizeOp",
    "SentencepieceDetokenizeOp",
    "NormalizeUTF8",
}
REFUSED = ("Xla", "PyFunc", "EagerPyFunc")


def check_operations(path):
    """Raises an error if the standard server does not have all operations.

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
            "The served model must have only operations of TensorFlow and of "
            "the tokenizer, because the standard server does not "
            f"run XLA or Python operations. Received: {sorted(refused)}"
        )
    return len(operations)


def check_greedy(signatures, examples):
    """Compares the greedy output with the one recorded at export.

    Returns:
        int, the number of examples.

    Raises:
        ValueError: naming the prompt and both completions.
    """
    prompts = [example["prompt"] for example in examples]
    ids = tf.ragged.constant([e["prompt_ids"] for e in examples], tf.int32)
    tokens = signatures["generate_tokens"](
        prompt_ids=ids.to_tensor(),
        prompt_lengths=tf.cast(ids.row_lengths(), tf.int32),
        temperature=tf.zeros(len(examples)),
        seed=tf.zeros(len(examples), tf.int32),
    )
    rows = tokens["completion_ids"].numpy().tolist()
    outputs = [
        [row[:length]]
        for row, length in zip(rows, tokens["completion_lengths"].numpy())
    ]
    names = ["completion_ids"]
    if "serving_default" in signatures:
        names.append("completion")
        texts = signatures["serving_default"](prompts=tf.constant(prompts))
        for row, text in zip(outputs, texts["completions"].numpy()):
            row.append(text.decode())
    for example, served in zip(examples, outputs):
        expected = [example[name] for name in names]
        if served != expected:
            raise ValueError(
                "The served model must generate the same tokens as "
                "`policy.generate` with greedy sampling. If an accelerator "
                "computes less precisely than its dtype, tokens of nearly "
                "equal probability may be swapped; use `verify=False` to "
                "export anyway. Received: "
                f"prompt={example['prompt']!r}, {served} served, {expected} "
                "expected"
            )
    return len(examples)


def replay_warmup(path, signatures, job):
    """Runs the warm-up requests, as a server does when it loads the model.

    Returns:
        int, the number of requests.

    Raises:
        ValueError: if the requests differ from those in the description, or
            if an output is not finite.
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
                    "The outputs of the served model must be finite. "
                    f"Received: `{name}` with {key}={value.numpy()}"
                )
    return len(found)


def write_warmup(path, job):
    """Writes the requests that a server runs before it reports it is ready."""
    file = os.path.join(path, EXTRA, WARMUP)
    with tf.io.TFRecordWriter(file) as writer:
        for name, inputs in job["requests"]:
            writer.write(encode_request(job["name"], name, inputs))


def as_tensors(inputs):
    """Converts the lists of a request to tensors."""
    dtypes = {"prompts": "string", "completions": "string"}
    dtypes["temperature"] = "float32"
    return {
        name: tf.constant(value, dtypes.get(name, "int32"))
        for name, value in inputs.items()
    }


def encode_request(model, signature, inputs):
    """Returns the bytes of a `tensorflow.serving.PredictionLog`.

    The five messages of the server's protocol are encoded by hand, because the
    package that defines them depends on one exact version of TensorFlow.

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
    """Runs all checks.

    Returns:
        dict of what was checked.
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
