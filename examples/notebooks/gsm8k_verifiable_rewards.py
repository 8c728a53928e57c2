"""
Title: Rewards that can be verified, on GSM8K
Author: keras_bond
Date created: 2026/11/25
Description: Right or wrong answers: prompts, rewards, ties, and dead prompts.
Accelerator: GPU
"""

"""
A word problem has one right number, so the reward needs no judge: it reads the
number that the answer ends with. This page takes GSM8K as tfds has it, asks in
the policy's chat format, rewards the number and the form, and looks at what is
peculiar to rewards of few values: ties, and prompts that teach nothing.

| configuration | hardware | minutes | right before | after |
|---|---|---|---|---|
| as it stands: GSM8K, Gemma 3 1B | one GPU of 80 GB | not known | | |
| `KERAS_BOND_SMALL=1` | 2 CPU cores | 1 | 0.32 to 0.33 | 0.54 to 0.58 |

**The first row was never run**, and the paper has no numbers for GSM8K. Look
for a share of right answers that rises on *held-out* problems, for
`frac_reward_zero_std` well below 1, and for `completions/clipped_ratio` near 0:
an answer that is cut is wrong. The second row was measured on JAX with seeds 0
to 2, on problems of one step; the best of two of the start is right in 0.54 to
0.55.

The package is on no index yet. Open this page in Jupyter from a checkout; on
Colab or Kaggle, upload the checkout and `%cd` into its `examples/notebooks`
first. Weights come from Kaggle: accept Gemma's licence
there, and set `KAGGLE_USERNAME` and `KAGGLE_KEY`.
"""

"""install
tensorflow-datasets array_record importlib_resources
"""

import os
import pathlib
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# 1 makes everything small, for two CPU cores; the code is the same.
SMALL = os.environ.get("KERAS_BOND_SMALL") == "1"
# Where this file is, or in Jupyter its notebook; the problems are one above.
FOLDER = pathlib.Path(globals().get("__file__", "notebook")).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import keras
import keras_hub
import numpy as np
import word_problems

import keras_bond

"""
## Settings
"""

SEED = 0
keras.utils.set_random_seed(SEED)
PRESET = "gemma3_instruct_1b"
DTYPE = "bfloat16"  # of the frozen weights; adapters are float32
LORA_RANK = 16
PROMPT_LENGTH, COMPLETION_LENGTH = 256, 256
TRAIN, HELD_OUT = 2048, 256
BATCH_SIZE, EPOCHS, RATE = 16, 1, 5e-4
if SMALL:
    PRESET = str(FOLDER.parent / "presets" / "word_problems")
    DTYPE, LORA_RANK = "float32", None
    PROMPT_LENGTH, COMPLETION_LENGTH = 24, 17
    TRAIN, HELD_OUT = 384, 128
    BATCH_SIZE, EPOCHS, RATE = 24, 2, 1e-3
SAMPLES = 8  # of a problem, to measure

"""
## Problems

`tfds.load("gsm8k")` has the columns `question`, `answer`, `annotation` and
`short_answer`; an answer ends with `#### 42`. `prompts_from` reads the data
set, writes each prompt by a template, and keeps the columns that the reward
wants. The template is Gemma's chat format, with the column in braces; the
policy then stops by itself at its end of turn. The small policy was taught with
bare questions.
"""

ASK = (
    "{question}\n\nThink step by step. End with a line that has only #### and "
    "the number."
)
TEMPLATE = "{question}"
if not SMALL:
    TEMPLATE = keras_bond.data.render_chat(
        [{"role": "user", "content": ASK}],
        keras_hub.models.Tokenizer.from_preset(PRESET),
    )


def word_problem_rows(split, count):
    """Problems with the columns of GSM8K, in a `tf.data.Dataset` as well."""
    import tensorflow as tf

    questions = {
        "train": word_problems.make_examples(count, seed=SEED)["prompts"],
        "test": word_problems.held_out_prompts(count, seed=1),
    }[split]
    short = [str(word_problems.solve(question)) for question in questions]
    columns = {
        "question": questions,
        "answer": [f"#### {number}" for number in short],
        "annotation": [""] * count,
        "short_answer": short,
    }
    return tf.data.Dataset.from_tensor_slices(columns)


def load(split, count):
    if SMALL:
        return word_problem_rows(split, count)
    import tensorflow_datasets as tfds

    return tfds.load("gsm8k", split=f"{split}[:{count}]")


train = keras_bond.data.prompts_from(
    load("train", TRAIN), template=TEMPLATE, columns=["answer"]
)
held_out = keras_bond.data.prompts_from(
    load("test", HELD_OUT), template=TEMPLATE, columns=["answer"]
)
print(held_out["prompts"][0], held_out["answer"][0], sep="\n")

"""
## Rewards

`NumberAnswer` finds the number behind the last `####`, or the last number
where there is none, in completion and column alike. A second, small reward
wants the form: exactly one mark, and a number and nothing else behind it. It
must not outweigh the number, or the policy learns the form alone.
"""


class WellFormed(keras_bond.rewards.TextReward):
    """1 if the completion has one `####`, and a number behind it, else 0."""

    def score(self, completion):
        _, mark, number = completion.partition("####")
        return float(bool(mark) and number.strip().lstrip("-").isdigit())


number = keras_bond.rewards.NumberAnswer()
form = WellFormed()
print(number(["?"], ["6 * 7 = 42 #### 42"], answer=["#### 42"]))
print(form(["?"], ["6 * 7 = 42 #### 42"]), form(["?"], ["It is 42."]))

"""
## Policy and trainer

BOND asks which of two samples is better, and here most are equal. `Bond` counts
a tie as half a win, and `JBond` breaks it at random. The rule that the paper
prints is strict: a sample loses only if it is worse than *all* anchor samples,
which hardly ever happens where most of these are wrong, so that little is
learned.
"""

policy = keras_hub.models.CausalLM.from_preset(PRESET, dtype=DTYPE)
if LORA_RANK:
    policy.backbone.enable_lora(LORA_RANK)
bond = keras_bond.Bond(
    policy,
    [number, form],
    reward_weights=[1.0, 0.1],
    max_prompt_length=PROMPT_LENGTH,
    max_completion_length=COMPLETION_LENGTH,
    reference=True,
    seed=SEED,
)


def draw(data):
    """`SAMPLES` answers to each problem by the policy as it is now."""
    return bond.generate(
        data["prompts"], num_samples=SAMPLES, batch_size=64, seed=SEED
    )


def score(reward, data, drawn):
    """Rewards of drawn answers `(problems, SAMPLES)`."""
    return np.array(
        [
            reward([prompt] * SAMPLES, texts, answer=[answer] * SAMPLES)
            for prompt, answer, texts in zip(
                data["prompts"], data["answer"], drawn
            )
        ],
        "float32",
    )


"""
## What a problem can teach

A problem that is always or never answered rightly gives all its samples the
same reward, and there is nothing to learn from it. So it is worth the samples
to look before: `informative` draws eight of each problem and keeps what is
neither hopeless nor solved. It looks at the number alone, as the form would
tell wrong answers apart. While training goes on, `frac_reward_zero_std` logs
the same share; when it rises because problems are solved, bring in harder ones.
"""

kept = keras_bond.data.informative(
    bond, train, num_samples=SAMPLES, reward=number, batch_size=64, seed=SEED
)
teaches = len(kept["prompts"]) / len(train["prompts"])

"""
## Training

What the policy reaches in one sample is compared with the best of N of its
start. For rewards of two values the best of N is the chance that one of N is
right.
"""

before = score(number, held_out, draw(held_out))
frontier = keras_bond.evaluation.best_of_n_frontier(before, (1, 2, 4))

steps = EPOCHS * -(-len(kept["prompts"]) // BATCH_SIZE)
warmup = max(1, steps // 10)
schedule = keras.optimizers.schedules.CosineDecay(
    RATE / 10,
    decay_steps=max(1, steps - warmup),
    alpha=0.1,
    warmup_target=RATE,
    warmup_steps=warmup,
)
bond.compile(keras.optimizers.Adam(schedule))
history = bond.fit(
    kept,
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    callbacks=[keras_bond.callbacks.AnchorEMA(update_rate=0.05)],
    verbose=2,
).history
drawn = draw(held_out)
after = score(number, held_out, drawn)
well_formed = score(form, held_out, drawn)

print("| policy | samples | right |\n|---|---|---|")
for row in frontier:
    print(f"| start | {row['n']} | {row['reward']:.3f} |")
print(f"| trained | 1 | {after.mean():.3f} |")

"""
## What to compare

`dead` is the share of problems whose samples all had the same reward, in the
first and the last epoch; the problems had been chosen not to be.
"""

results = {
    "right_before": float(before.mean()),
    "best_of_2_before": frontier[1]["reward"],
    "right_after": float(after.mean()),
    "well_formed_after": float(well_formed.mean()),
    "teaches": teaches,
    "dead_first": float(history["frac_reward_zero_std"][0]),
    "dead_last": float(history["frac_reward_zero_std"][-1]),
    "kl_ref": float(history["kl_ref"][-1]),
}
print(results)
