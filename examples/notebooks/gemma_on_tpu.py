"""
Title: Gemma 3 1B on a TPU
Author: keras_bond
Date created: 2026/11/25
Description: LoRA, weights split over chips, and a run that may be interrupted.
Accelerator: TPU
"""

"""
Gemma 3 1B learns to explain things in forty words, when it is asked to. Only
LoRA adapters are trained, the weights lie spread over the chips, and when the
machine is taken away the run goes on from where it was.

| configuration | hardware | minutes | before | after | KL |
|---|---|---|---|---|---|
| as it stands | TPU v5e, one or eight | 20, a guess | ? | ? | ? |
| `KERAS_BOND_SMALL=1` | 2 CPU cores | 1 | 0.322 | 0.514 | 0.36 |

Before and after are mean rewards on held-out prompts, 1 for the right number of
words; KL is to the start, in nats a sequence, mean of the last epoch.

**The first row was never run on a TPU.** What is known of it is what the
compiler of the chip says (`python integration/tpu_compile.py --topology
v5e:1x1 --prompts 16 --prompt-length 64 --completion-length 128`): a step needs
2.7 of the 16 GiB of one v5e and at least 0.9 s; with `--topology v5e:2x4 --mesh
2x4`, on each of eight, 0.7 GiB and 0.1 s. These are bounds and no timings.
What to look for: a reward that is higher in the last epoch than in the first,
`kl_ref` of some nats and not of tens, and explanations that are still good. The
second row was measured on JAX with seed 0, with a tiny Gemma 3 that writes
about hiking trails.

The package is on no index yet. Open this page in Jupyter from a checkout; on
Colab or Kaggle, upload the checkout and `%cd` into its `examples/notebooks`
first. Weights come from Kaggle: accept Gemma's licence there, and set
`KAGGLE_USERNAME` and `KAGGLE_KEY` (on Colab, as secrets).
"""

"""install
"jax[tpu]"
"""

import os
import pathlib
import sys

os.environ["KERAS_BACKEND"] = "jax"  # the only one on which Keras distributes
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# 1 makes everything small, for the tests; the code is the same.
SMALL = os.environ.get("KERAS_BOND_SMALL") == "1"
if SMALL:
    # Eight devices where there is one processor; before JAX is imported.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
# Where this file is, or in Jupyter its notebook; the facts are one above.
FOLDER = pathlib.Path(globals().get("__file__", "notebook")).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

# It must outlive the machine: on Colab take a folder of your Drive.
RUN = pathlib.Path("runs/gemma_on_tpu")
# So that going on compiles nothing again.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(RUN / "compiled"))

import data_to_text
import keras
import keras_hub
import numpy as np

import keras_bond

"""
## Settings
"""

SEED = 0
PRESET = "gemma3_instruct_1b"
DTYPE = "bfloat16"  # of the frozen weights; adapters are float32
LORA_RANK = 8
WORDS = 40
PROMPT_LENGTH, COMPLETION_LENGTH = 64, 128
BATCH_SIZE = 16  # prompts a step, of all chips together
STEPS, EPOCHS = 20, 3
LEARNING_RATE = 5e-4
HELD_OUT, SAMPLES = 32, 8
if SMALL:
    PRESET = str(FOLDER.parent / "presets" / "data_to_text")
    DTYPE, WORDS, LEARNING_RATE = "float32", 12, 6e-3
    PROMPT_LENGTH, COMPLETION_LENGTH = 32, 50
    BATCH_SIZE, STEPS, EPOCHS = 16, 6, 2
    HELD_OUT, SAMPLES = 24, 8

"""
## The chips

The distribution comes first: policy and trainer built afterwards are placed by
it. The first number of the mesh spreads the rows of a batch, the second the
weights. One chip of 16 GiB holds a 1B policy whole, and then rows over all
chips are faster; here the weights are split in four, as larger ones would need.
"""

devices = keras.distribution.list_devices()
num_weights = 4 if len(devices) % 4 == 0 else 1
mesh = keras.distribution.DeviceMesh(
    (len(devices) // num_weights, num_weights), ("batch", "model"), devices
)
keras.distribution.set_distribution(keras_bond.distribution.ModelParallel(mesh))
print(f"{mesh.shape[0]} x {mesh.shape[1]} of {devices[0]}")

"""
## Policy, prompts, reward

With LoRA only the adapters exist more than once: policy, anchor and reference
are sets of values for one network, and the reference costs nothing.
"""


def load_policy():
    keras.utils.set_random_seed(SEED)
    policy = keras_hub.models.CausalLM.from_preset(PRESET, dtype=DTYPE)
    policy.backbone.enable_lora(LORA_RANK)
    return policy


THINGS = (
    "rainbows, tides, yeast, magnets, glaciers, vaccines, inflation, echoes, "
    "photosynthesis, compound interest, earthquakes, black holes, antibiotics, "
    "sleep, lightning, compost, satellites, refrigerators, fever, seasons, "
    "sourdough, gravity, batteries, bees, encryption, mirrors, volcanoes, "
    "allergies, sundials, elections, fog, sails, fossils, soap, cranes, caves"
).split(", ")
READERS = ("a child", "a teenager", "a farmer", "a lawyer", "my grandmother")
ASPECTS = ("what they are", "why they matter", "how they work", "their history")


def explanations(count, seed):
    """Conversations of one turn; the policy reads them in Gemma's format."""
    generator = np.random.default_rng(seed)
    asked = [
        f"Explain {thing} to {reader} in {WORDS} words: {aspect}."
        for thing in THINGS
        for reader in READERS
        for aspect in ASPECTS
    ]
    chosen = generator.permutation(len(asked))[:count]
    return [[{"role": "user", "content": asked[i]}] for i in chosen]


count = STEPS * BATCH_SIZE
if SMALL:
    prompts = data_to_text.make_examples(count, seed=100 + SEED)["prompts"]
    held_out = data_to_text.held_out_prompts(HELD_OUT, seed=1)
else:
    both = explanations(count + HELD_OUT, seed=SEED)
    prompts, held_out = both[:count], both[count:]


def reward(prompts, completions):
    """1 for `WORDS` words, and less the further away."""
    return [
        1.0 - min(1.0, abs(len(text.split()) - WORDS) / WORDS)
        for text in completions
    ]


"""
## The trainer, and whether it fits

`JBond` is BOND with the settings of the paper: one sample of the policy and two
of the anchor for each prompt. `rematerialize=True` trades time for memory and
changes no result. `plan` counts as if all were on one device and computes
nothing.
"""


def make_bond():
    bond = keras_bond.JBond(
        load_policy(),
        reward,
        max_prompt_length=PROMPT_LENGTH,
        max_completion_length=COMPLETION_LENGTH,
        seed=SEED,
    )
    steps = EPOCHS * STEPS
    schedule = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE / 10,
        decay_steps=steps,
        alpha=0.1,
        warmup_target=LEARNING_RATE,
        warmup_steps=steps // 8,
    )
    optimizer = keras.optimizers.Adam(schedule, clipnorm=1.0)
    bond.compile(optimizer, rematerialize=True)
    return bond


bond = make_bond()
plan = keras_bond.plan(bond, batch_size=BATCH_SIZE, device_memory=16e9)
print(plan)
plan.check()

"""
## The start
"""


def samples_and_reward():
    """Several for each held-out prompt, and the mean reward of all."""
    groups = bond.generate(held_out, num_samples=SAMPLES, batch_size=BATCH_SIZE)
    texts = [text for group in groups for text in group]
    return groups, float(np.mean(reward(None, texts)))


start_texts, mean = samples_and_reward()
results = {"before": mean}
print(results)

"""
## Training, and a machine that is taken away

`BackupAndRestore` keeps policy, anchor, optimizer, draws and the place in the
data. To see that it does, the machine "goes away" once on purpose, after the
first epoch.
"""


class Disconnect(keras.callbacks.Callback):
    """Ends the run when its second epoch begins."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise ConnectionError("the machine is gone")


def train(bond, *callbacks):
    RUN.mkdir(parents=True, exist_ok=True)
    return bond.fit(
        prompts,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[
            keras_bond.callbacks.AnchorEMA(0.02),
            keras.callbacks.BackupAndRestore(RUN / "backup"),
            *callbacks,
        ],
    )


try:
    train(bond, Disconnect())
except ConnectionError as error:
    print(error)

"""
On the next machine: the same cells again. What is loaded here is the preset,
without a trace of training; `fit` finds the backup and goes on with the second
epoch. If your machine really was taken away, leave the cell above out.
"""

bond = make_bond()
history = train(bond)
results["went_on_at_epoch"] = float(history.epoch[0])
for epoch, reached, kl in zip(
    history.epoch, history.history["reward"], history.history["kl_ref"]
):
    print(f"epoch {epoch + 1}: reward {reached:.3f}, KL {kl:.3f}")

"""
## After
"""

texts, results["after"] = samples_and_reward()
results["kl"] = history.history["kl_ref"][-1]
for prompt, before, now in zip(held_out[:3], start_texts, texts):
    print(prompt)
    print("  before:", before[0])
    print("  after: ", now[0])

"""
## Save

`bond.save` keeps the run, to train on; `save_to_preset` writes an ordinary
KerasHub preset, adapters merged. [The next page](export_and_serve.ipynb) puts
a policy behind a server.
"""

bond.save(RUN / "bond.keras")
bond.policy.save_to_preset(str(RUN / "policy"))
results["saved"] = float((RUN / "policy" / "config.json").exists())
print(results)
