"""
Title: Gemma 3 270M on a free GPU or TPU
Author: keras_bond
Date created: 2026/11/27
Description: The smallest Gemma learns to answer in one short sentence.
Accelerator: GPU or TPU
"""

"""
Colab lends a GPU and Kaggle a TPU for nothing. That is enough for Gemma 3 270M:
asked for one short sentence it rambles, and `Bond` trains LoRA adapters until
one sample is as good as the best of several. A rule rewards a finished sentence
of about fifteen words.

| configuration | hardware | minutes | before | after | KL | N |
|---|---|---|---|---|---|---|
| as it stands | Colab T4, Kaggle TPU v5e | unknown | ? | ? | ? | ? |
| `KERAS_BOND_SMALL=1` | 2 CPU cores | 1 | 1.346 | 1.622 | 0.58 | 2.1 |

**The first row was never run**: no such machine could be reached. A step draws
384 answers of at most 32 tokens. Before and after are mean rewards on held-out
questions; KL is to the initial policy, in nats per sequence; N is the Best-of-N
of the initial policy that one sample of the trained policy is worth. The second
row was measured on JAX with seed 0, with a tiny Gemma 3 that writes about
hiking trails.

The same with a real model on two CPU cores: `python examples/real_model.py`.

The package is on no index yet: upload a clone of the repository, and `%cd` into
its `examples/notebooks` first. On Kaggle choose the TPU on the right, under
"Session options". Weights come from Kaggle: accept Gemma's license there, and
set `KAGGLE_USERNAME` and `KAGGLE_KEY` (on Colab, as secrets).
"""

"""
## Install

Both images bring a JAX that fits their chip, and a Keras that may be too old.
Keras, KerasHub and this package are installed without what they depend on, so
that nothing else of the image is replaced. Only where TensorFlow is missing, as
on Colab's TPUs, KerasHub's tokenizers need one more.
"""

"""install
"""

import os
import pathlib
import sys

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# 1 makes everything small, for the tests; the code is the same.
SMALL = os.environ.get("KERAS_BOND_SMALL") == "1"
# Where this file is, or in Jupyter its notebook; the facts are one above.
FOLDER = pathlib.Path(globals().get("__file__", "notebook")).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import jax
import keras
import keras_hub

import keras_bond

print(f"Keras {keras.__version__} on JAX {jax.__version__}: {jax.devices()}")

"""
## Settings

A T4 computes bfloat16 slowly, a TPU float32. With one TPU chip of eight this
run is fast enough; [Gemma 3 1B on a TPU](gemma_on_tpu.ipynb) uses all of them.
"""

SEED = 0
PRESET = "gemma3_instruct_270m"
DTYPE = "bfloat16" if jax.default_backend() == "tpu" else "float32"
LORA_RANK = 8
WORDS = 15
PROMPT_LENGTH, COMPLETION_LENGTH = 32, 32
BATCH_SIZE, STEPS = 32, 60  # questions per step; each is answered 12 times
LEARNING_RATE = 5e-4
HELD_OUT, POOL, SAMPLES = 64, 64, 32
RUN = pathlib.Path("runs/gemma_270m")
if SMALL:
    PRESET = str(FOLDER.parent / "presets" / "data_to_text")
    WORDS, LEARNING_RATE = 12, 6e-3
    COMPLETION_LENGTH, BATCH_SIZE, STEPS = 50, 8, 9
    HELD_OUT, POOL, SAMPLES = 24, 16, 8

"""
## Policy, questions, reward

The questions are conversations; the policy reads them in its own chat format.
"""

keras.utils.set_random_seed(SEED)
policy = keras_hub.models.CausalLM.from_preset(PRESET, dtype=DTYPE)
policy.backbone.enable_lora(LORA_RANK)


if SMALL:
    import data_to_text

    count = BATCH_SIZE * STEPS
    questions = data_to_text.make_examples(count, seed=100 + SEED)["prompts"]
    held_out = data_to_text.held_out_prompts(HELD_OUT, seed=1)
else:
    import real_model

    asked = real_model.ask(real_model.TOPICS)
    held_out = real_model.ask(real_model.HELD_OUT_TOPICS)[:HELD_OUT]
    questions = [turns for turns in asked if turns not in held_out]


def reward(prompts, completions):
    """1 for a finished sentence, and up to 1 for a length of `WORDS` words."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [
        float(text.rstrip().endswith((".", "!", "?")))
        + max(0.0, 1.0 - abs(len(text.split()) - WORDS) / WORDS)
        for text in texts
    ]


"""
## The trainer, and whether it fits

Best-of-4 of a fixed anchor, the initial policy, is a target that training
cannot overshoot. With a moving anchor (`AnchorEMA`) N grows as long as you
train, at a higher KL. `plan` counts the memory and computes nothing.
"""

bond = keras_bond.Bond(
    policy,
    reward,
    best_of_n=4,
    num_policy_samples=4,
    num_anchor_samples=8,
    max_prompt_length=PROMPT_LENGTH,
    max_completion_length=COMPLETION_LENGTH,
    reference=True,
    seed=SEED,
)
schedule = keras.optimizers.schedules.CosineDecay(
    LEARNING_RATE / 10,
    decay_steps=STEPS,
    alpha=0.05,
    warmup_target=LEARNING_RATE,
    warmup_steps=STEPS // 9,
)
bond.compile(keras.optimizers.Adam(schedule))
plan = keras_bond.plan(bond, batch_size=BATCH_SIZE, device_memory=15e9)
print(plan)
plan.check()

"""
## Training

`HeldOut` measures before and after each epoch, and prints some answers beside
those of the initial policy. The first step compiles, for a minute or two.
"""

report = keras_bond.callbacks.HeldOut(
    held_out, RUN, pool_size=POOL, num_samples=SAMPLES, batch_size=8
)
bond.fit(
    (questions * STEPS)[: STEPS * BATCH_SIZE],
    batch_size=BATCH_SIZE,
    epochs=3,
    steps_per_epoch=STEPS // 3,
    callbacks=[keras_bond.callbacks.AnchorFixed(), report],
)

"""
## What one sample is worth now
"""

for row in report.frontier:
    print("best of {n}: {reward:.3f}, KL {kl:.3f}".format(**row))
trained = report.points[-1]
results = {
    "before": report.frontier[0]["reward"],
    "after": trained["reward"],
    "effective_n": trained["effective_n"],
    "kl": trained["kl"],
}
print(results)
keras_bond.evaluation.plot_best_of_n(report.frontier, report.points)

"""
## Save

An ordinary KerasHub preset, with the adapters merged.
[Another page](export_and_serve.ipynb) puts it behind a server.
"""

if not (RUN / "policy").exists():
    keras_bond.export.save_preset(bond.policy, RUN / "policy")
results["saved"] = float((RUN / "policy" / "config.json").exists())
