"""
Title: A trained policy behind a server
Author: keras_bond
Date created: 2026/11/25
Description: Train, export for TensorFlow Serving, ask by REST and by gRPC.
Accelerator: GPU
"""

"""
A policy is trained for a moment, exported as a SavedModel that the stock image
of TensorFlow Serving runs, strings in and strings out, and asked. Where no
Docker is at hand, as on Colab, TensorFlow answers the same requests here from
the same files.

| configuration | hardware | minutes | reward before | after | greedy agrees |
|---|---|---|---|---|---|
| as it stands | GPU of 16 GB, 16 GB of memory | 15, a guess | ? | ? | ? |
| `KERAS_BOND_SMALL=1` | 2 CPU cores | 1 to 2 | 0.254 | 0.469 | 1.00 |

Before and after are mean rewards on held-out prompts, 1 for the right number of
words; the last column is the share of greedy completions that the export and
`policy.generate` have alike.

**The first row was never measured.** Look for a reward that rises a little: 24
steps do not go far. In bfloat16 every backend rounds in its own way, so a few
greedy completions may leave those of `policy.generate` on the way; in float32,
as in the second row, they must all be equal. The second row was measured on
JAX with seed 0, with a tiny Gemma 3 that writes about hiking trails.

The package is on no index yet. Open this page in Jupyter from a checkout; on
Colab, upload the checkout and `%cd` into its `examples/notebooks` first.
Weights come from Kaggle: accept Gemma's licence there, and set
`KAGGLE_USERNAME` and `KAGGLE_KEY` (on Colab, as secrets).
"""

"""install
"jax[cuda12]" safetensors tensorflow tensorflow-serving-api
"""

import json
import os
import pathlib
import sys
import urllib.request

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# 1 makes everything small, for the tests; the code is the same.
SMALL = os.environ.get("KERAS_BOND_SMALL") == "1"
# Where this file is, or in Jupyter its notebook; the facts are one above.
FOLDER = pathlib.Path(globals().get("__file__", "notebook")).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import data_to_text
import grpc
import keras
import keras_hub
import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401, the tokenizer inside the SavedModel
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc

import keras_bond

# The accelerator belongs to the training.
tf.config.set_visible_devices([], "GPU")

"""
## Settings
"""

SEED = 0
SERVER = None  # "localhost", once the container below runs
SERVED = pathlib.Path("runs/export_and_serve/served/my_policy")
PRESET, DTYPE = "gemma3_instruct_1b", "bfloat16"
TEMPLATE = "<start_of_turn>user\n{prompt}<end_of_turn>\n<start_of_turn>model\n"
WORDS = 40
PROMPT_LENGTH, COMPLETION_LENGTH = 64, 128
BATCH_SIZE, STEPS, LEARNING_RATE = 8, 24, 1e-3
THINGS = (
    "rainbows tides yeast magnets glaciers vaccines inflation echoes lightning "
    "earthquakes antibiotics sleep compost satellites refrigerators fever "
    "seasons sourdough gravity batteries bees encryption mirrors volcanoes"
).split()
prompts = [f"Explain {thing} in {WORDS} words." for thing in THINGS] * 8
held_out = [f"Explain {thing} in {WORDS} words." for thing in ("fog", "soap")]
if SMALL:
    PRESET = str(FOLDER.parent / "presets" / "data_to_text")
    DTYPE, TEMPLATE, WORDS = "float32", "{prompt}", 12
    PROMPT_LENGTH, COMPLETION_LENGTH = 32, 50
    BATCH_SIZE, STEPS, LEARNING_RATE = 16, 12, 6e-3
    prompts = data_to_text.make_examples(192, seed=100 + SEED)["prompts"]
    held_out = data_to_text.held_out_prompts(16, seed=1)

"""
## Train for a moment

The template belongs to the server: users send a bare prompt. So training puts
it around the prompts, and the export is told of it.
"""


def reward(prompts, completions):
    """1 for `WORDS` words, and less the further away."""
    return [
        1.0 - min(1.0, abs(len(text.split()) - WORDS) / WORDS)
        for text in completions
    ]


def in_template(prompts):
    return [TEMPLATE.replace("{prompt}", prompt) for prompt in prompts]


keras.utils.set_random_seed(SEED)
policy = keras_hub.models.CausalLM.from_preset(PRESET, dtype=DTYPE)
policy.backbone.enable_lora(8)
bond = keras_bond.JBond(
    policy,
    reward,
    max_prompt_length=PROMPT_LENGTH,
    max_completion_length=COMPLETION_LENGTH,
    seed=SEED,
)
schedule = keras.optimizers.schedules.CosineDecay(
    LEARNING_RATE / 10,
    decay_steps=STEPS,
    alpha=0.1,
    warmup_target=LEARNING_RATE,
    warmup_steps=2,
)
bond.compile(keras.optimizers.Adam(schedule, clipnorm=1.0))


def mean_reward():
    groups = bond.generate(in_template(held_out), num_samples=8)
    return float(np.mean(reward(None, [t for texts in groups for t in texts])))


results = {"before": mean_reward()}
bond.fit(
    in_template(prompts),
    batch_size=BATCH_SIZE,
    verbose=0,
    callbacks=[keras_bond.callbacks.AnchorEMA(0.02)],
)
results["after"] = mean_reward()
print(results)

"""
## Export

Adapters are merged, the tokenizer goes in, and a process with TensorFlow alone
must say greedily what the policy says, token for token, before the version
appears: a server that watches the folder never sees half a model. The warm-up
requests are answered by the server before it says that it is ready.
"""

version = keras_bond.export.export_saved_model(
    bond.policy,
    SERVED,
    max_prompt_length=PROMPT_LENGTH,
    max_new_tokens=COMPLETION_LENGTH,
    prompt_template=TEMPLATE,
    prompts=held_out[:2],
)
print(version)
for file in sorted(pathlib.Path(version).rglob("*")):
    print(" ", file.relative_to(version))

"""
**Versions.** Another export into the same folder becomes the next number, and
one that exists is never written over. The server takes the highest and lets go
of the one before when the new one has answered its warm-up; to go back, remove
the number. `version=7` chooses one.

```shell
docker run -p 8500:8500 -p 8501:8501 \
  -v "$PWD/runs/export_and_serve/served/my_policy:/models/my_policy" \
  -e MODEL_NAME=my_policy tensorflow/serving
```

With the container running set `SERVER = "localhost"` above, and the cells below
ask it. Without, TensorFlow answers here, from the same files.
"""

model = tf.saved_model.load(version)
for name, signature in model.signatures.items():
    inputs = ", ".join(signature.structured_input_signature[1])
    print(f"{name}({inputs}) -> {', '.join(signature.structured_outputs)}")


def answer(name, inputs):
    """What the server does with the inputs of a request."""
    signature = model.signatures[name]
    specs = signature.structured_input_signature[1]
    columns = {n: tf.constant(inputs[n], specs[n].dtype) for n in specs}
    return {n: tensor.numpy() for n, tensor in signature(**columns).items()}


"""
## REST

`serving_default` is greedy. `generate` draws: temperature and seed are columns
as the prompts are, so one request may ask for all kinds.

```shell
curl http://localhost:8501/v1/models/my_policy:predict -d '{
  "signature_name": "generate",
  "inputs": {"prompts": ["..."], "temperature": [1.0], "seed": [3]}
}'
```
"""


def post(body):
    """Answers the body of a REST request with one column of strings."""
    if SERVER:
        url = f"http://{SERVER}:8501/v1/models/my_policy:predict"
        data = json.dumps(body).encode()
        with urllib.request.urlopen(url, data, timeout=300) as reply:
            return json.load(reply)
    name = body.get("signature_name", "serving_default")
    (texts,) = answer(name, body["inputs"]).values()
    return {"outputs": [text.decode() for text in texts]}


greedy = post({"inputs": {"prompts": held_out}})["outputs"]
drawn = post(
    {
        "signature_name": "generate",
        "inputs": {
            "prompts": held_out,
            "temperature": [1.0] * len(held_out),
            "seed": [3] * len(held_out),
        },
    }
)["outputs"]
for prompt, one, other in zip(held_out[:2], greedy, drawn):
    print(f"{prompt}\n  greedy: {one}\n  drawn:  {other}")

"""
Is that what the policy says? Greedily, KerasHub's own `generate` must give the
same text. At temperature 1 a row with seed 3 must be what the trainer draws
first with that seed.
"""

bond.policy.compile(sampler="greedy")
expected = bond.policy.generate(
    in_template(held_out),
    max_length=PROMPT_LENGTH + COMPLETION_LENGTH,
    strip_prompt=True,
)
results["greedy_agrees"] = float(np.mean(np.equal(greedy, expected)))
eight = bond.generate(in_template(held_out), num_samples=8, seed=3)
results["drawn_agrees"] = float(drawn[0] == eight[0][0])

"""
## gRPC

`score` tells the log-probability of a completion, in nats; with that of
stopping behind it, the sum is that of the whole answer. Here: does the policy
find its greedy answers likelier than those that it drew?
"""


def predict(request):
    """Answers a `PredictRequest` with a dict of arrays."""
    if SERVER:
        channel = grpc.insecure_channel(f"{SERVER}:8500")
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        outputs = stub.Predict(request).outputs
        return {name: tf.make_ndarray(outputs[name]) for name in outputs}
    inputs = {n: tf.make_ndarray(t) for n, t in request.inputs.items()}
    return answer(request.model_spec.signature_name, inputs)


def mean_log_prob(completions):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "my_policy"
    request.model_spec.signature_name = "score"
    columns = {"prompts": held_out, "completions": completions}
    for name, texts in columns.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(texts))
    scores = predict(request)
    return float(np.mean(scores["log_probs"] + scores["end_log_probs"]))


results["greedy_log_prob"] = mean_log_prob(greedy)
results["drawn_log_prob"] = mean_log_prob(drawn)
print(results)

"""
`best_of_n=8` at export adds the signature `sample`, eight completions of each
prompt with their log-probabilities, and with `reward=` a Keras model that
chooses among them. `keras_bond.export.verify_saved_model(version)` checks a
version again, on the machine that is to serve it.
"""
