"""
Title: One sample as good as the best of several
Author: keras_bond
Date created: 2026/11/25
Description: Best-of-N distillation from start to end, on any CPU.
Accelerator: None
"""

"""
Draw several answers, keep the best: that works, and costs several times as
much. BOND trains a policy with `model.fit` until **one** sample is about as
good as the best of several of the policy that it started from.

This page goes all the way with a tiny Gemma 3 of 0.4 million parameters, which
turns facts about a hiking trail into a sentence. It was taught with flawed
sentences, so one sample states only about 60 % of the facts rightly.

| configuration | hardware | minutes | before | after | Best-of-2 | KL | N |
|---|---|---|---|---|---|---|---|
| as it stands | 2 CPU cores | 3 to 5 | 0.611 | 0.790 | 0.740 | 0.33 | 2.2 |
| `KERAS_BOND_SMALL=1` | 2 CPU cores | 1 | 0.588 | 0.704 | 0.713 | 0.28 | 1.7 |

Both rows were measured on JAX with seed 0. Before, after and Best-of-2 are mean
rewards on held-out prompts; KL is how far the policy went for it, in nats a
sequence; N is the Best-of-N of the start that one sample of the trained policy
is worth.

The package is on no index yet. Open this page in Jupyter from a checkout; on
Colab or Kaggle, upload the checkout and `%cd` into its `examples/notebooks`
first.
"""

"""install
"""

import os
import pathlib
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# 1 makes everything small, for the tests; the code is the same.
SMALL = os.environ.get("KERAS_BOND_SMALL") == "1"
# Where this file is, or in Jupyter its notebook; the facts are one above.
FOLDER = pathlib.Path(globals().get("__file__", "notebook")).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import data_to_text
import keras
import keras_hub

import keras_bond

"""
## Settings
"""

SEED = 0
EPOCHS = 6
STEPS = 15  # an epoch
BATCH_SIZE = 24  # prompts a step; each is answered eight times
LEARNING_RATE = 1.5e-4
HELD_OUT = 64  # prompts that training never sees
POOL = 64  # samples of the start for each of them
SAMPLES = 16  # of the policy for each of them, after each epoch
CURVE = (1, 2, 3, 4, 5, 6, 7, 8)  # the N of Best-of-N
RUN = pathlib.Path("runs/quickstart")
if SMALL:
    EPOCHS, STEPS, BATCH_SIZE, LEARNING_RATE = 2, 9, 6, 6e-4
    HELD_OUT, POOL, SAMPLES = 24, 16, 8

"""
## A policy

Any KerasHub causal language model with a key-value cache, from a preset:
`"gemma3_instruct_1b"`, or as here a folder.
"""

policy = keras_hub.models.CausalLM.from_preset(
    str(FOLDER.parent / "presets" / "data_to_text")
)
held_out = data_to_text.held_out_prompts(HELD_OUT, seed=1)
print(held_out[0])

"""
## A reward

One number for each completion, higher is better. No reward model is needed, and
no pairs: any function with this signature will do. This one is the share of
the facts that a sentence states, and states rightly.
"""


def reward(prompts, completions):
    return data_to_text.fact_coverage(prompts, completions)


print(reward(held_out[:1], ["The path passes a tea house and is easy."]))

"""
## The trainer

For each prompt `Bond` draws four completions of the policy and four of the
*anchor*, a moving average of the policy. The policy imitates the anchor's good
ones and moves away from its own bad ones, towards Best-of-2 of the anchor; the
anchor follows. `keras_bond.JBond` is the same with the settings of the paper.

`reference=True` keeps the start too, so that the KL to it is known.
"""

bond = keras_bond.Bond(
    policy,
    reward,
    max_prompt_length=32,
    max_completion_length=50,
    kl_weight=0.5,
    reference=True,
    seed=SEED,
)
schedule = keras.optimizers.schedules.CosineDecay(
    LEARNING_RATE / 10,
    decay_steps=EPOCHS * STEPS,
    alpha=0.1,
    warmup_target=LEARNING_RATE,
    warmup_steps=EPOCHS * STEPS // 9,
)
bond.compile(keras.optimizers.Adam(schedule))

"""
Is it right on this machine, with this backend and precision? And will it fit?
`keras_bond.doctor()` checks the first (try it; it is left out here to save
time), `plan` the second, and computes nothing for it.
"""

plan = keras_bond.plan(bond, batch_size=BATCH_SIZE)
plan.check()
print(plan)

"""
## What is to be matched

`HeldOut` draws one pool of samples of the initial policy when training begins.
The pool holds Best-of-N of the initial policy for every N: reward, win rate
against one sample, and KL, all exact for the pool. After each epoch `HeldOut`
draws from the policy for the same held-out prompts, and tells for which N one
sample is as good as the best of N. It also prints a few completions beside
those of the initial policy, since rewards can rise while answers get worse.
"""

report = keras_bond.callbacks.HeldOut(
    held_out,
    RUN,
    ns=CURVE,
    pool_size=POOL,
    num_samples=SAMPLES,
    batch_size=8,
)

"""
## Training

`fit`, with prompts as its data. Stock callbacks work, and `AnchorEMA` moves the
anchor after each step.
"""

prompts = data_to_text.make_examples(STEPS * BATCH_SIZE, seed=100 + SEED)
bond.fit(
    prompts["prompts"],
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    callbacks=[
        keras_bond.callbacks.AnchorEMA(0.02),
        report,
    ],
    verbose=2,  # a line for each epoch; leave it out for a progress bar
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
    "best_of_2": report.frontier[1]["reward"],
    "win_rate": trained["win_rate"],
    "kl": trained["kl"],
    "effective_n": trained["effective_n"],
}

"""
Reward alone says little: it must be seen against the KL that it costs. On the
grey curve is Best-of-N of the start, which pays with samples; on the orange
path the policy, one sample an answer.
"""

figure = keras_bond.evaluation.plot_best_of_n(report.frontier, report.points)
figure  # `HeldOut` writes it to `RUN / "best_of_n.png"`, too

"""
## Save, and go on

`bond.save` keeps policy, anchor, optimizer and random state, so that a loaded
trainer goes on as if nothing had happened; functions are not saved, and the
reward is given again. The policy alone is an ordinary KerasHub model with an
ordinary preset.
"""

RUN.mkdir(parents=True, exist_ok=True)
bond.save(RUN / "bond.keras")
loaded = keras.saving.load_model(
    RUN / "bond.keras", custom_objects={"reward": reward}
)
bond.policy.save_to_preset(str(RUN / "policy"))

answers = [model.generate(held_out[:8]) for model in (bond, loaded)]
results["loaded_says_the_same"] = float(answers[0] == answers[1])
print(results)

"""
From here: [Gemma 3 1B on a TPU](gemma_on_tpu.ipynb), or
[the trained policy behind a server](export_and_serve.ipynb). Bring prompts and
a function that scores answers; nothing else on this page needs to change.
"""
