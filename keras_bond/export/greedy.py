"""Greedy completions of KerasHub, the expected output of a served model."""

import contextlib

import numpy as np
from keras import ops

from keras_bond.data.tokenizer import TextTokenizer


def record_completions(policy, job):
    """Adds the greedy completion to each example of a job, ids and text."""
    completions = greedy_completions(
        policy,
        [example["prompt_ids"] for example in job["examples"]],
        job["max_new_tokens"],
        job["stop_token_ids"],
    )
    texts = TextTokenizer(policy.preprocessor).decode(
        completions, job["special_token_ids"]
    )
    for example, ids, text in zip(job["examples"], completions, texts):
        example["completion_ids"] = ids
        example["completion"] = text


def greedy_completions(policy, prompt_ids, max_new_tokens, stop_token_ids):
    """Completes prompts with KerasHub's own generation, greedily.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        prompt_ids: list of lists of int.
        max_new_tokens: int. Maximum number of tokens in a completion.
        stop_token_ids: sequence of int.

    Returns:
        list of lists of int, each up to and including its stop token.
    """
    lengths = [len(row) for row in prompt_ids]
    token_ids = np.zeros((len(lengths), max(lengths) + max_new_tokens), "int32")
    for row, ids in zip(token_ids, prompt_ids):
        row[: len(ids)] = ids
    mask = np.arange(token_ids.shape[1]) < np.array(lengths)[:, None]
    with _greedy(policy):
        outputs = policy.make_generate_function()(
            {
                "token_ids": ops.convert_to_tensor(token_ids),
                "padding_mask": ops.convert_to_tensor(mask),
            },
            stop_token_ids=tuple(stop_token_ids),
        )
    drawn = ops.convert_to_numpy(outputs["token_ids"])
    rows = [row[n : n + max_new_tokens] for row, n in zip(drawn, lengths)]
    return [_truncated(row.tolist(), stop_token_ids) for row in rows]


def _truncated(tokens, stop_token_ids):
    ends = [i for i, token in enumerate(tokens) if token in stop_token_ids]
    return tokens[: ends[0] + 1] if ends else tokens


@contextlib.contextmanager
def _greedy(policy):
    """Returns a context in which the policy has a greedy sampler.

    `policy.compile(sampler=...)` would also reset optimizer and loss.
    """
    import keras_hub

    before = policy.sampler, policy.generate_function
    policy.sampler = keras_hub.samplers.GreedySampler()
    policy.generate_function = None
    try:
        yield
    finally:
        policy.sampler, policy.generate_function = before
