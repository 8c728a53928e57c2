"""Tracing of a served model, run as a script.

The command is `python -m keras_bond.export.serving.trace FOLDER`, with
`KERAS_BACKEND="tensorflow"`. `FOLDER` contains `job.json` and `preset/`, and
the script writes `model/` into it.
"""

import contextlib
import importlib
import json
import os
import sys

import keras
import tensorflow as tf

from keras_bond.export.greedy import record_completions
from keras_bond.export.serving import verify
from keras_bond.export.serving.signatures import Signatures


@contextlib.contextmanager
def without_xla():
    """Replaces the one Keras operation that the standard server cannot run.

    On TensorFlow `keras.ops.slice_update` is an XLA operation, and the server
    does not compile with XLA unless it is started with a flag.
    """

    def slice_update(inputs, start_indices, updates):
        begin = tf.stack([tf.cast(i, tf.int32) for i in start_indices])
        updated = tf.raw_ops.TensorStridedSliceUpdate(
            input=inputs,
            begin=begin,
            end=begin + tf.shape(updates),
            strides=tf.ones_like(begin),
            value=tf.cast(updates, inputs.dtype),
        )
        updated.set_shape(inputs.shape)
        return updated

    original = keras.ops.slice_update
    keras.ops.slice_update = slice_update
    try:
        yield
    finally:
        keras.ops.slice_update = original


def load_policy(folder, job):
    """Returns the policy of `folder` on TensorFlow, in the job's dtype."""
    import keras_hub

    # Of a class of one's own there is the one that it is derived from.
    causal_lm = getattr(
        keras_hub.models, job["policy"], keras_hub.models.CausalLM
    )
    policy = causal_lm.from_preset(
        os.path.join(folder, "preset"), dtype=job["dtype"]
    )
    policy.trainable = False
    # XLA rounds differently in low precision, and the server does not use it.
    policy.jit_compile = False
    return policy


def load_reward(folder, job):
    """Returns the reward model of `folder`, or `None`."""
    if job["reward_modules"] is None:
        return None
    # Classes register themselves with Keras when their module is imported.
    for module in job["reward_modules"]:
        importlib.import_module(module)
    return keras.saving.load_model(
        os.path.join(folder, "reward.keras"), compile=False
    )


def save(policy, reward, job, path):
    """Traces the signatures and writes weights and tokenizer, each once."""
    models = [policy] if reward is None else [policy, reward]
    variables = [v for model in models for v in model.variables]
    with without_xla():
        signatures = Signatures(policy, job, reward)
        traced = signatures.trace()
        # A module without functions: its functions would be traced again.
        module = tf.Module()
        module.weights = [v.value for v in variables]
        if signatures.text is not None:
            module.tokenizer = signatures.text.tokenizer
        tf.saved_model.save(module, path, signatures=traced)


def requests(job):
    """Returns one request per signature, for the check and the warm-up.

    Returns:
        list of `(signature name, dict of lists)`.
    """
    example = job["examples"][0]
    ids, drawn = example["prompt_ids"], example["completion_ids"]
    texts = {"prompts": [example["prompt"]]}
    prompt = {"prompt_ids": [ids], "prompt_lengths": [len(ids)]}
    sampling = {"temperature": [1.0], "seed": [0]}
    completion = {
        "completion_ids": [drawn],
        "completion_lengths": [len(drawn)],
    }
    by_name = {
        "generate_tokens": {**prompt, **sampling},
        "score_tokens": {**prompt, **completion},
    }
    if job["serves_text"]:
        by_name |= {
            "serving_default": texts,
            "generate": {**texts, **sampling},
            "score": {**texts, "completions": [""]},
        }
    if job["best_of_n"]:
        by_name["sample"] = {**texts, **sampling}
    return list(by_name.items())


def main(folder):
    """Writes the served model of a job folder."""
    with open(os.path.join(folder, "job.json")) as file:
        job = json.load(file)
    path = os.path.join(folder, "model")
    policy = load_policy(folder, job)
    if "completion_ids" not in job["examples"][0]:
        record_completions(policy, job)
    job["requests"] = requests(job)
    save(policy, load_reward(folder, job), job, path)
    extra = os.path.join(path, verify.EXTRA)
    os.makedirs(extra, exist_ok=True)
    with open(os.path.join(extra, verify.DESCRIPTION), "w") as file:
        json.dump(job, file)
    if job["warmup"]:
        verify.write_warmup(path, job)
    verify.check_operations(path)


if __name__ == "__main__":
    main(sys.argv[1])
