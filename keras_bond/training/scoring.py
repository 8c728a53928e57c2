"""Rewards of drawn completions, on the host."""

import numpy as np

from keras_bond import rewards as rewards_lib
from keras_bond.backend import devices

# What of a rollout the rewards are told.
DRAWN = ("completion_ids", "mask", "terminated", "token_ids", "padding_mask")


def score_rollout(scorer, tokenizer, source, drawn):
    """Scores all completions of a rollout in one call of the reward.

    Where several processes train together, each scores its own rows.

    Args:
        scorer: a `keras_bond.rewards.Reward`.
        tokenizer: a `keras_bond.data.tokenizer.TextTokenizer`, or `None`.
        source: what the batch came from; knows text and columns of a prompt.
        drawn: dict of tensors: `prompt_index` `(batch,)`, -1 where a row only
            fills the batch, and what `Rollout.collate` returned.

    Returns:
        dict of tensors: `rewards` float32 `(batch, num_samples)`, 0 for what
        does not count; `present` bool `(batch,)`, real prompts; `valid` bool
        `(batch,)`, those of which every completion has a reward.
    """
    prompt_index = devices.to_host(drawn["prompt_index"])
    present = prompt_index >= 0
    num_samples = drawn["mask"].shape[1]
    rewards = np.full((len(present), num_samples), np.nan, "float32")
    if present.any():
        arrays = {name: devices.to_host(drawn[name])[present] for name in DRAWN}
        samples = samples_of(
            tokenizer, source, prompt_index[present].tolist(), arrays
        )
        rewards[present] = scorer(samples).reshape(-1, num_samples)
    valid = np.isfinite(rewards).all(axis=1)
    rewards[~valid] = 0.0
    arrays = {"rewards": rewards, "present": present, "valid": valid}
    return {k: devices.to_device(v) for k, v in arrays.items()}


def samples_of(tokenizer, source, prompt_index, arrays):
    """Describes completions to a reward, those of a prompt side by side.

    Args:
        tokenizer: a `keras_bond.data.tokenizer.TextTokenizer`, or `None`.
        source: what the prompts came from; knows text and columns of each.
        prompt_index: list of int. The prompts' numbers in `source`.
        arrays: dict of arrays over `(prompts, num_samples)`, see
            `Rollout.collate`.

    Returns:
        a `keras_bond.rewards.Samples`.
    """
    num_samples = arrays["mask"].shape[1]
    rows = {k: v.reshape(-1, *v.shape[2:]) for k, v in arrays.items()}
    drawn = drawn_tokens(rows["completion_ids"], rows["mask"])
    table = source.take(prompt_index).repeat(num_samples)
    return rewards_lib.Samples(
        prompts=table.prompts,
        completions=tokenizer and tokenizer.decode(drawn),
        columns=table.columns,
        conversations=table.conversations,
        token_ids=rows["token_ids"],
        padding_mask=rows["padding_mask"],
        num_samples=num_samples,
        completion_ids=drawn,
        terminated=rows["terminated"],
        tokenizer=tokenizer and tokenizer.tokenizer,
    )


def drawn_tokens(completion_ids, mask):
    """Lists of the tokens that count, one for each row of the arrays."""
    return [ids[kept].tolist() for ids, kept in zip(completion_ids, mask)]
