"""
Title: Coming from TRL
Author: keras_bond
Date created: 2026/11/25
Description: Reward functions and data sets of TRL, used as they are.
Accelerator: GPU
"""

"""
You have reward functions and a data set for TRL's `RLOOTrainer` or
`GRPOTrainer`. Both are used here without a change; what changes is the trainer.
This page says which argument is which, which logged numbers are the same, and
what really differs. TRL itself is not needed.

| configuration | hardware | minutes | right before | after |
|---|---|---|---|---|
| as it stands: GSM8K, Gemma 3 1B | one GPU of 80 GB | not known | | |
| `KERAS_BOND_SMALL=1` | 2 CPU cores | 1 | 0.32 to 0.33 | 0.48 to 0.51 |

**The first row was never run**, and the paper has no numbers for GSM8K: look
for a share of right answers that rises on held-out problems. The second row was
measured on JAX with seeds 0 to 2, on problems of one step. Names and defaults
of TRL are those of its release 1.16.

The package is on no index yet. Open this page in Jupyter from a checkout; on
Colab or Kaggle, upload the checkout and `%cd` into its `examples/notebooks`
first. Weights come from Kaggle: accept Gemma's licence
there, and set `KAGGLE_USERNAME` and `KAGGLE_KEY`.
"""

"""install
datasets
"""

import os
import pathlib
import re
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# 1 makes everything small, for two CPU cores; the code is the same.
SMALL = os.environ.get("KERAS_BOND_SMALL") == "1"
# Where this file is, or in Jupyter its notebook; the problems are one above.
FOLDER = pathlib.Path(globals().get("__file__", "notebook")).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import datasets
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
PROMPT_BUCKETS, COMPLETION_LENGTH = (128, 256), 256
TRAIN, HELD_OUT = 2048, 256
BATCH_SIZE, RATE = 16, 5e-4
if SMALL:
    PRESET = str(FOLDER.parent / "presets" / "word_problems")
    DTYPE, LORA_RANK = "float32", None
    # The long ones are conversations.
    PROMPT_BUCKETS, COMPLETION_LENGTH = (24, 64), 17
    TRAIN, HELD_OUT = 768, 128
    BATCH_SIZE, RATE = 32, 1e-3
SAMPLES = 8  # of a problem, to measure

"""
## Your reward functions

These are written for TRL. A function gets `prompts`, `completions`,
`completion_ids` and every other column of the data by name, one entry for each
completion; it may be `async`. Where prompts are conversations, completions are
lists with one turn of the assistant. `None` means "cannot score".
"""


def text_of(completion):
    return (
        completion if isinstance(completion, str) else completion[0]["content"]
    )


def correctness(prompts, completions, answer, **kwargs):
    scores = []
    for completion, right in zip(completions, answer):
        text = text_of(completion).replace(",", "")
        found = re.findall(r"####\s*(-?\d+)", text)
        if right is None:
            scores.append(None)
        else:
            scores.append(1.0 if found and found[-1] == right else 0.0)
    return scores


def brevity(completions, **kwargs):
    return [-len(text_of(completion)) / 1000 for completion in completions]


plain = ["7 + 5 = 12 #### 12", "no idea", "#### 3"]
turns = [[{"role": "assistant", "content": text}] for text in plain]
answers = ["12", "12", None]
print(correctness(["?"] * 3, plain, answer=answers))
print(correctness(["?"] * 3, turns, answer=answers))

"""
TRL adds `log_metric`, `log_extra` and `trainer_state` to the arguments. The
first two work here too: a metric is logged as `rewards/...`, and `HeldOut`
shows extra columns. `trainer_state` is not passed, because a completion has the
same reward at every step.

## Your data set

A `datasets.Dataset` with a column `prompt`, strings or conversations, goes into
`fit` as it is. In a tenth of the rows the answer is unknown.
"""


def ask(question):
    return [{"role": "user", "content": question}]


def gsm8k(split, count):
    rows = datasets.load_dataset("openai/gsm8k", "main", split=split)
    how = "End with a line that has only #### and the number."
    return rows.select(range(count)).map(
        lambda row: {
            "prompt": ask(f"{row['question']}\n\n{how}"),
            "answer": row["answer"].rpartition("#### ")[2].replace(",", ""),
        }
    )


def one_step(split, count):
    texts = {
        "train": word_problems.make_examples(count, seed=SEED)["prompts"],
        "test": word_problems.held_out_prompts(count, seed=1),
    }[split]
    solved = [str(word_problems.solve(text)) for text in texts]
    return datasets.Dataset.from_dict({"prompt": texts, "answer": solved})


rows = one_step if SMALL else gsm8k
train_dataset = rows("train", TRAIN).map(
    lambda row, i: {"answer": None if i % 10 == 0 else row["answer"]},
    with_indices=True,
)
eval_dataset = rows("test", HELD_OUT)
print(train_dataset)

"""
## The trainer

In TRL:

```python
trainer = RLOOTrainer(
    model="google/gemma-3-1b-it",
    reward_funcs=[correctness, brevity],
    args=RLOOConfig(
        num_generations=4, per_device_train_batch_size=64, beta=0.05,
        reward_weights=[1.0, 0.1], max_completion_length=256,
    ),
    train_dataset=train_dataset,
    peft_config=LoraConfig(r=16),
)
trainer.train()
```

TRL's batch counts completions, 64 here, which are 16 prompts of four; Keras's
`batch_size` counts prompts. `Bond` draws its four in halves, from the policy
and from the anchor. To keep the method and change the library only, take
`keras_bond.Reinforce(kl_weight=0.05, num_policy_samples=4)` instead, which is
RLOO.
"""


def bare_question(turns):
    """How the small policy was taught; Gemma has a chat format of its own."""
    return turns[-1]["content"]


policy = keras_hub.models.CausalLM.from_preset(PRESET, dtype=DTYPE)
if LORA_RANK:
    policy.backbone.enable_lora(LORA_RANK)
bond = keras_bond.Bond(
    policy,
    [correctness, brevity],
    reward_weights=[1.0, 0.1],
    num_policy_samples=2,
    num_anchor_samples=2,
    prompt_buckets=PROMPT_BUCKETS,
    max_prompt_length=PROMPT_BUCKETS[-1],
    max_completion_length=COMPLETION_LENGTH,
    chat_template=bare_question if SMALL else "auto",
    reference=True,
    seed=SEED,
)
steps = len(train_dataset) // BATCH_SIZE
schedule = keras.optimizers.schedules.CosineDecay(
    RATE / 10,
    decay_steps=steps - steps // 8,
    alpha=0.1,
    warmup_target=RATE,
    warmup_steps=steps // 8,
)
bond.compile(keras.optimizers.Adam(schedule))


def share_right():
    """Of `SAMPLES` answers to each held-out problem."""
    data = {name: list(eval_dataset[name]) for name in ("prompt", "answer")}
    drawn = bond.generate(
        data["prompt"], num_samples=SAMPLES, batch_size=64, seed=SEED
    )
    scores = [
        correctness([prompt] * SAMPLES, texts, answer=[right] * SAMPLES)
        for prompt, right, texts in zip(data["prompt"], data["answer"], drawn)
    ]
    return float(np.mean(scores))


before = share_right()
history = bond.fit(
    train_dataset,
    batch_size=BATCH_SIZE,
    callbacks=[keras_bond.callbacks.AnchorEMA(update_rate=0.05)],
    verbose=2,
).history
after = share_right()
print(f"right: {before:.3f} before, {after:.3f} after")

"""
## Conversations, and `None`

The same functions on conversations, with one reward alone: where it says `None`
for all completions of a prompt, the prompt drops out and is counted. In the sum
above such a prompt was still scored by the other function, as in TRL. A policy
reads conversations in its own chat format; the small one has none, so that its
trainer was given `chat_template=`.
"""

seen = []


def spy(prompts, completions, answer, **kwargs):
    seen.append((prompts[0], completions[0]))
    return correctness(prompts, completions, answer, **kwargs)


bond.reward = spy
conversations = datasets.Dataset.from_list(
    [
        {"prompt": ask(problem), "answer": None if i % 4 == 0 else "1"}
        for i, problem in enumerate(word_problems.held_out_prompts(32, seed=2))
    ]
)
logs = bond.evaluate(conversations, batch_size=32, verbose=0, return_dict=True)
print(seen[0])
print(f"{logs['frac_prompts_unscored']:.3f} of the prompts are not scored")

"""
## Which argument is which

| TRL | here |
|---|---|
| `reward_funcs`, `reward_weights` | `reward`, `reward_weights` |
| `reward_processing_classes` | `RewardModel(preprocessor=)` |
| `num_generations` | `num_policy_samples` + `num_anchor_samples` |
| `per_device_train_batch_size` | `fit(batch_size=)` (1) |
| `gradient_accumulation_steps` | `compile(gradient_accumulation_steps=)` (2) |
| `generation_batch_size` | `compile(rollout_batch_size=)` (3) |
| `steps_per_generation` | none: 1 (4) |
| `num_iterations`, `epsilon` | none (4) |
| `max_completion_length` | `max_completion_length` |
| none | `max_prompt_length`, `prompt_buckets`, `truncate` |
| `pad_to_multiple_of` | `prompt_buckets` |
| `temperature` | `temperature` |
| `top_p`, `top_k`, `min_p` | none (5) |
| `repetition_penalty` | none (5), or `rewards.Repetition()` |
| `beta` of RLOO | `Reinforce(kl_weight=)` |
| `beta` of GRPO | `kl_weight`, a KL to the anchor |
| `sync_ref_model` | an anchor, and its rule: |
| `ref_model_mixup_alpha` | `callbacks.AnchorEMA(update_rate)` |
| `ref_model_sync_steps` | `callbacks.AnchorRefresh(every)` |
| `scale_rewards`, `reward_clip_range` | none (6) |
| `normalize_advantages` | none (6) |
| `mask_truncated_completions` | `rewards.UnfinishedLast(reward)` |
| `missing_eos_penalty` of online DPO | `rewards.UnfinishedLast(reward)` |
| `gradient_checkpointing` | `compile(rematerialize=True)` |
| `bf16` | `from_preset(..., dtype=)` (7) |
| `peft_config` | `policy.backbone.enable_lora(rank)` |
| `learning_rate`, `lr_scheduler_type` | the Keras optimizer |
| `max_grad_norm`, 1.0 | its `global_clipnorm`, none by default |
| `num_train_epochs`, 3 | `fit(epochs=)`, 1 by default |
| `shuffle_dataset`, `seed` | `fit(shuffle=)`, `seed` |
| `eval_dataset`, `eval_strategy` | `fit(validation_data=, validation_freq=)` |
| `log_completions` | `callbacks.HeldOut(prompts)` |
| `report_to` | `keras.callbacks.TensorBoard`, `CSVLogger` |
| `save_steps`, `resume_from_checkpoint` | `keras.callbacks.BackupAndRestore` |
| `use_vllm` | none: drawing is a compiled loop |

1. Prompts of all devices together. TRL's are completions of one device.
2. The batch is cut in so many parts, and the result stays the same.
3. So many prompts are drawn at a time, to save memory.
4. Completions are learned from once, by the policy that drew them, so that no
   ratio has to be clipped.
5. A sample must come from the policy itself. For use, compile the trained
   policy with any sampler of KerasHub.
6. BOND reads which completion is better, so that no scale matters.
7. `"bfloat16"` with LoRA, `"mixed_bfloat16"` without: Adam cannot move bfloat16
   variables.

## Which number is which
"""

TRL_LOGS = (
    "reward, reward_std, frac_reward_zero_std, kl, entropy, "
    "completions/mean_length, completions/clipped_ratio, "
    "completions/min_length, completions/max_length, num_tokens, "
    "clip_ratio/region_mean, rewards/correctness/mean, rewards/brevity/mean"
).split(", ")
shared = [name for name in TRL_LOGS if name in history]
print("in both:", ", ".join(shared))
print("TRL alone:", ", ".join(n for n in TRL_LOGS if n not in history))
print("here alone:", ", ".join(n for n in history if n not in TRL_LOGS))

"""
Of those in both, three do not mean the same. `kl` is a mean over *tokens* to
the reference in TRL, and here a sum over the completion to the *anchor*;
`kl_ref` is the one to the start. `entropy` is that of TRL, in nats a token.
`reward` and `reward_std` are of the policy's samples alone, the deviation taken
over prompts; `anchor/reward` has those of the anchor.

## What differs

- **No reference copy.** Policy, anchor and reference are sets of values for one
  network. With LoRA these are adapters; in full fine-tuning the anchor is a
  second set of weights and `reference=True` a third.
- **An anchor.** RLOO's KL is to a start that stays. BOND descends a divergence
  to the Best-of-2 of an anchor that follows the policy, so that a KL to the
  anchor is part of it even with `kl_weight=0`. How far the policy has gone from
  its start says `kl_ref`.
- **Ranks, not sizes.** Of a reward BOND reads only which completion is better:
  multiply it, shift it, and nothing changes. Of two rewards the sum is ranked,
  so there the weights count.
- **Tokens, not text.** A Keras model as the reward gets the ids that were
  drawn, on the device. TRL decodes them and reads the text again.
- **A `None` of some.** A function that scores only some completions of a prompt
  takes the prompt out, for the others could not be compared; TRL leaves the one
  completion out.

## What to compare
"""

results = {
    "right_before": before,
    "right_after": after,
    "kl_ref": float(history["kl_ref"][-1]),
    "unscored_in_sum": float(history["frac_prompts_unscored"][-1]),
    "unscored_alone": float(logs["frac_prompts_unscored"]),
    "shared_names": float(len(shared)),
}
print(results)
