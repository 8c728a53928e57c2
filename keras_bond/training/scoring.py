"""From a rollout to rewards, on the host."""

import numpy as np

from keras_bond import backend
from keras_bond import rewards as rewards_lib
from keras_bond.data import lengths
from keras_bond.training import generation

# Entries of a batch that only the scoring needs.
ONLY_THERE = ("prompt_index", "index_in_batch", "token_ids", "padding_mask")


def score_rollout(scorer, codec, source, rows, rollout):
    """Scores all completions of a rollout in one call of the reward.

    Where several processes train together, each scores its own rows.

    Args:
        scorer: a `keras_bond.rewards.Reward`.
        codec: a `TextTokenizer`, or `None`.
        source: what the batch came from; tells text and columns of a row.
        rows: int tensor `(batch,)`. Row numbers, -1 where a row only fills
            the batch.
        rollout: dict of tensors over `(batch, num_samples)`.

    Returns:
        dict of tensors: `rewards` float32 `(batch, num_samples)`, 0 for what
        does not count; `present` bool `(batch,)`, real prompts; `valid` bool
        `(batch,)`, those of which every completion has a reward.
    """
    rows = backend.devices.to_host(rows)
    present = rows >= 0
    num_samples = rollout["mask"].shape[1]
    rewards = np.full((len(rows), num_samples), np.nan, "float32")
    if present.any():
        samples = _samples(codec, source, rows, present, rollout)
        rewards[present] = scorer(samples).reshape(-1, num_samples)
    valid = np.isfinite(rewards).all(axis=1)
    rewards[~valid] = 0.0
    arrays = {"rewards": rewards, "present": present, "valid": valid}
    return {k: backend.devices.to_device(v) for k, v in arrays.items()}


def draw_scored(trainer, prompts, num_samples, batch_size, weights, seed):
    """Draws completions of prompts and scores them, without learning.

    Args:
        trainer: a `keras_bond.training.policy_trainer.PolicyTrainer`.
        prompts, num_samples, batch_size, weights: see its `generate`.
        seed: int.

    Returns:
        `(samples, rewards)`: a `keras_bond.rewards.Samples`, and a float32
        array `(prompts, num_samples)`, NaN for what could not be scored.
    """
    batches, drawn = generation.draw_tokens(
        trainer, prompts, num_samples, batch_size, weights, seed, False
    )
    samples = rewards_lib.Samples(
        **generation.text_of(
            trainer.codec,
            batches,
            range(len(drawn) // num_samples),
            drawn,
            num_samples,
        ),
        **_pad(trainer, batches.table, drawn, num_samples),
        num_samples=num_samples,
        completion_ids=drawn,
        terminated=np.array(
            [row[-1] in trainer.stop_token_ids for row in drawn], bool
        ),
        tokenizer=trainer.codec and trainer.codec.tokenizer,
    )
    rewards = trainer.score_samples(samples)
    return samples, rewards.reshape(-1, num_samples)


def _pad(trainer, table, drawn, num_samples):
    """Prompt and completion in one row, as the policy itself reads them."""
    rows = [
        [*prompt, *completion]
        for prompt, completion in zip(
            table.repeat(num_samples).token_ids, drawn
        )
    ]
    length = trainer.max_prompt_length + trainer.max_completion_length
    return lengths.pad(rows, length)


def _samples(codec, source, rows, present, rollout):
    names = ("completion_ids", "mask", "token_ids", "padding_mask")
    ids, mask, token_ids, padding_mask = (
        _rows_of_samples(rollout[name], present) for name in names
    )
    num_samples = rollout["mask"].shape[1]
    drawn = [row[kept] for row, kept in zip(ids, mask)]
    terminated = backend.devices.to_host(rollout["terminated"])[present]
    return rewards_lib.Samples(
        **generation.text_of(
            codec, source, rows[present].tolist(), drawn, num_samples
        ),
        token_ids=token_ids,
        padding_mask=padding_mask,
        num_samples=num_samples,
        completion_ids=[row.tolist() for row in drawn],
        terminated=terminated.reshape(-1),
        tokenizer=codec and codec.tokenizer,
    )


def _rows_of_samples(tensor, present):
    array = backend.devices.to_host(tensor)[present]
    return array.reshape(-1, array.shape[-1])
