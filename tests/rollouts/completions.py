"""Completions that are given to a trainer, of any tokens."""

import numpy as np
from keras import ops

import keras_bond


def make_batch(prompt_lengths, prompt_length, mask):
    """Tensors of a batch; what pads a prompt are tokens, too.

    Args:
        prompt_lengths: list of int.
        prompt_length: int.
        mask: bool array `(batch, samples, completion_length)`.
    """
    generator = np.random.default_rng(0)
    shape = (len(prompt_lengths), prompt_length)
    arrays = {
        "prompt_ids": generator.integers(5, 40, shape).astype("int32"),
        "prompt_lengths": np.array(prompt_lengths, "int32"),
        "completion_ids": generator.integers(5, 40, mask.shape).astype("int32"),
        "mask": mask,
    }
    return {k: ops.convert_to_tensor(v) for k, v in arrays.items()}


def make_bond(policy, prompt_length, completion_length):
    return keras_bond.Bond(
        policy,
        lambda prompts, completions: [0.0] * len(prompts),
        max_prompt_length=prompt_length,
        max_completion_length=completion_length,
    )
