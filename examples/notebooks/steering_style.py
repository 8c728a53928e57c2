"""
Title: Steering style with a classifier
Author: keras_bond
Date created: 2026/11/25
Description: A sentiment lexicon as reward, its price, and how to pay less.
Accelerator: GPU
"""

"""
Steering what a model says is easy to want and easy to overdo. Here a sentiment
lexicon scores sentences of a hiking guide, and the policy learns to sound
cheerful. A second reward counts the facts that the sentence should state: the
price. Then three ways to pay less of it: both rewards in a sum, both by their
ranks, and a larger `kl_weight`.

| configuration | hardware | minutes | expected |
|---|---|---|---|
| as it stands: Gemma 3 1B | one GPU of 24 GB | not known | not known |
| `KERAS_BOND_SMALL=1`: tiny Gemma 3 | 2 CPU cores | 1 | the second table |

**The first row was never run**, and the paper has no such experiment. Look for
a sentiment that rises with sentences that still are what a guide would write,
and read some of them: a lexicon is easily pleased. The paper's figure 6 shows
what `kl_weight` (its γ) does: a larger one makes the KL grow more slowly, at a
better trade-off. The second row was measured on JAX with seeds 0 to 2:

| steered by | sentiment | facts | KL |
|---|---|---|---|
| nothing | 0.09 to 0.11 | 0.56 to 0.57 | 0 |
| sentiment alone | 0.32 to 0.43 | 0.48 to 0.52 | 1.1 to 1.7 |
| a sum of both | 0.24 to 0.32 | 0.71 to 0.73 | 1.2 to 1.4 |
| ranks of both | 0.23 to 0.26 | 0.70 to 0.71 | 1.0 to 1.3 |
| sentiment alone, held back | 0.25 to 0.28 | 0.49 to 0.51 | 0.8 to 1.0 |

The package is on no index yet. Open this page in Jupyter from a checkout; on
Colab or Kaggle, upload the checkout and `%cd` into its `examples/notebooks`
first. The lexicon,
[VADER](https://github.com/cjhutto/vaderSentiment), lies in its package and
wants no download. Weights come from Kaggle: accept Gemma's licence there, and
set `KAGGLE_USERNAME` and `KAGGLE_KEY`.
"""

"""install
vaderSentiment
"""

import os
import pathlib
import re
import sys
import tempfile

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# 1 makes everything small, for two CPU cores; the code is the same.
SMALL = os.environ.get("KERAS_BOND_SMALL") == "1"
# Where this file is, or in Jupyter its notebook; the facts are one above.
FOLDER = pathlib.Path(globals().get("__file__", "notebook")).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import data_to_text
import keras
import keras_hub
import numpy as np
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

import keras_bond

"""
## Settings
"""

SEED = 0
keras.utils.set_random_seed(SEED)
PRESET = "gemma3_instruct_1b"
DTYPE = "bfloat16"  # of the frozen weights; adapters are float32
LORA_RANK = 8
PROMPT_LENGTH, COMPLETION_LENGTH = 96, 64
BATCH_SIZE, STEPS, EPOCHS, RATE = 32, 30, 2, 1e-3
HELD_OUT = 128
if SMALL:
    PRESET = str(FOLDER.parent / "presets" / "data_to_text")
    DTYPE, LORA_RANK = "float32", None
    PROMPT_LENGTH, COMPLETION_LENGTH = 20, 32
    BATCH_SIZE, STEPS, EPOCHS, RATE = 16, 16, 2, 1e-3
    HELD_OUT = 64
SAMPLES = 8  # of a prompt, to measure
KL_WEIGHTS = (0.0, 0.5)

"""
## Prompts

Facts about a hiking trail are to become a sentence of a guide. The facts go
along as a column, for the reward that counts them.
"""

ASK = "State these facts in one sentence of a hiking guide. {facts}"
TEMPLATE = "{facts}"
if not SMALL:
    TEMPLATE = keras_bond.data.render_chat(
        [{"role": "user", "content": ASK}],
        keras_hub.models.Tokenizer.from_preset(PRESET),
    )


def fact_lists(texts, count):
    """Fact lists with three facts, as rows."""
    short = [text for text in texts if text.count(":") == 3]
    return keras_bond.data.prompts_from(
        [{"facts": facts} for facts in short[:count]],
        template=TEMPLATE,
    )


train = fact_lists(
    data_to_text.make_examples(8 * STEPS * BATCH_SIZE, seed=SEED)["prompts"],
    STEPS * BATCH_SIZE,
)
held_out = fact_lists(
    data_to_text.held_out_prompts(8 * HELD_OUT, seed=1), HELD_OUT
)
print(held_out["prompts"][0])

"""
## Rewards

`Classifier` makes a reward of any callable that takes texts and returns a
number, a row of scores, or scores by label, of which `label` says the one that
counts. A KerasHub classifier's `predict` or a pipeline of Hugging Face goes in
the same place. VADER returns `neg`, `neu`, `pos`, and `compound` in [-1, 1].

Whether the facts are right is a rule of one text at a time, a `TextReward`:
what is left out costs, and so does what is made up.
"""

analyzer = SentimentIntensityAnalyzer()


def classify(texts):
    return [analyzer.polarity_scores(text) for text in texts]


class Facts(keras_bond.rewards.TextReward):
    """Facts rightly stated, by those that are stated or should be."""

    column = "facts"
    values = "|".join(v for vs in data_to_text.VALUES.values() for v in vs)

    def score(self, completion, facts):
        wanted = set(data_to_text.parse_prompt(facts).values())
        stated = set(re.findall(rf"\b(?:{self.values})\b", completion))
        return len(wanted & stated) / len(wanted | stated)


sentiment = keras_bond.rewards.Classifier(classify, label="compound")
facts = Facts()
for text in ("An easy walk, best in spring.", "A demanding walk in winter."):
    print(sentiment(["?"], [text]), text)

"""
## Policy and trainers

One policy, and a trainer for each `kl_weight`. A trainer is compiled once: its
reward may be changed between calls of `fit`, and its weights are saved, so that
every run below begins where the policy began.
"""

policy = keras_hub.models.CausalLM.from_preset(PRESET, dtype=DTYPE)
if LORA_RANK:
    policy.backbone.enable_lora(LORA_RANK)
folder = pathlib.Path(tempfile.mkdtemp())
trainers = {}
for kl_weight in KL_WEIGHTS:
    schedule = keras.optimizers.schedules.CosineDecay(
        RATE / 10,
        decay_steps=STEPS * EPOCHS - STEPS // 5,
        alpha=0.1,
        warmup_target=RATE,
        warmup_steps=STEPS // 5,
    )
    bond = keras_bond.JBond(
        policy,
        sentiment,
        max_prompt_length=PROMPT_LENGTH,
        max_completion_length=COMPLETION_LENGTH,
        kl_weight=kl_weight,
        reference=True,
        seed=SEED,
    )
    bond.compile(keras.optimizers.Adam(schedule))
    bond.save_weights(folder / f"{kl_weight}.weights.h5")
    trainers[kl_weight] = bond


def draw():
    """`SAMPLES` sentences for each prompt by the policy as it is now."""
    return trainers[KL_WEIGHTS[0]].generate(
        held_out["prompts"], num_samples=SAMPLES, batch_size=64, seed=SEED
    )


def score(reward, drawn):
    """Rewards of drawn sentences `(prompts, SAMPLES)`."""
    return np.array(
        [
            reward([prompt] * SAMPLES, texts, facts=[facts] * SAMPLES)
            for prompt, facts, texts in zip(
                held_out["prompts"], held_out["facts"], drawn
            )
        ],
        "float32",
    )


"""
## What Best-of-N would do

The best of N samples by sentiment, and what becomes of the facts. `spread` is
the standard deviation of the sentiment among samples of one prompt: where it is
0, no method that picks among samples can steer.
"""

start = draw()
by_sentiment, by_facts = score(sentiment, start), score(facts, start)
spread = float(by_sentiment.std(axis=1).mean())
frontier = keras_bond.evaluation.best_of_n_frontier(by_sentiment, (1, 2, 4))
print(f"spread: {spread:.3f}")
table = {}
for row in frontier:
    n = row["n"]
    weights = np.array(keras_bond.formulas.best_of_n_weights(by_sentiment, n))
    kept = float((weights * by_facts).sum(axis=1).mean())
    table[f"best of {n} of the start"] = (row["reward"], kept, row["kl"])

"""
## Steer

`RankFusion` ranks the samples of a prompt by each reward and takes the mean
rank, so that no scale drowns the other; BOND reads no more than ranks anyway.
In a sum the scales matter, and the weight says how many facts a point of
sentiment is worth.
"""


def steer(reward, kl_weight=KL_WEIGHTS[0]):
    """Trains from the start; returns sentiment, facts and KL."""
    bond = trainers[kl_weight]
    bond.load_weights(folder / f"{kl_weight}.weights.h5")
    bond.reward = reward
    logs = bond.fit(
        train,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        callbacks=[keras_bond.callbacks.AnchorEMA(update_rate=0.1)],
        verbose=0,
    ).history
    drawn = draw()
    print(drawn[0][0])
    means = (float(score(r, drawn).mean()) for r in (sentiment, facts))
    return *means, float(logs["kl_ref"][-1])


pair = [sentiment, facts]
table["sentiment alone"] = steer(sentiment)
table["a sum"] = steer(pair)
table["ranks"] = steer(keras_bond.rewards.RankFusion(pair))
table["sentiment, held back"] = steer(sentiment, KL_WEIGHTS[1])

print("| policy | sentiment | facts | KL |\n|---|---|---|---|")
for name, numbers in table.items():
    print(f"| {name} | {' | '.join(f'{number:.3f}' for number in numbers)} |")

"""
## What to compare

Sentiment alone costs facts. With both rewards facts rise as well, for the start
is far from stating all of them, and the sentiment rises less. Held back, the
policy pays less KL and gets less. Best-of-4 of the start has as much sentiment
for less KL and at no price in facts: the small run learns in 32 steps, at a
learning rate far above that of a real one. The KL of a trained policy is the
mean of its last epoch, in nats a sentence.
"""

alone, ranks = table["sentiment alone"], table["ranks"]
held = table["sentiment, held back"]
results = {
    "spread": spread,
    "sentiment_before": float(by_sentiment.mean()),
    "facts_before": float(by_facts.mean()),
    "sentiment_alone": alone[0],
    "facts_alone": alone[1],
    "sentiment_ranks": ranks[0],
    "facts_ranks": ranks[1],
    "facts_sum": table["a sum"][1],
    "kl_saved": alone[2] - held[2],
}
print(results)
