"""Samples with made-up tokens, one for each character."""

import numpy as np

from keras_bond import rewards


def samples(
    completions,
    num_samples=None,
    columns=None,
    terminated=None,
    conversations=None,
):
    """One prompt, or several with `num_samples` each."""
    count = len(completions)
    num_samples = num_samples or count
    width = max(map(len, completions))
    ids = np.array(
        [[ord(c) for c in text.ljust(width)] for text in completions]
    )
    return rewards.Samples(
        prompts=[f"p{i // num_samples}" for i in range(count)],
        completions=completions,
        columns=columns or {},
        token_ids=ids.astype("int32"),
        padding_mask=np.arange(width) < [[len(t)] for t in completions],
        num_samples=num_samples,
        terminated=None if terminated is None else np.array(terminated),
        conversations=conversations,
    )
