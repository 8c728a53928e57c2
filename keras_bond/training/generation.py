"""Draws completions for a whole list of prompts."""

import keras
import numpy as np
from keras import ops


def draw_all(draw, batches, seed, shows_progress):
    """Draws for every batch and returns the tokens that count.

    Args:
        draw: compiled function of `(inputs, rows, seed)` that returns token
            ids and their mask, `(batch, num_samples, length)` each.
        batches: a `keras_bond.data.PromptBatches`.
        seed: int.
        shows_progress: bool.

    Returns:
        list of lists of int, prompt by prompt and sample by sample.
    """
    drawn = []
    bar = keras.utils.Progbar(
        batches.num_batches, verbose=int(shows_progress), unit_name="batch"
    )
    for i in range(batches.num_batches):
        (inputs,) = batches[i]
        present = inputs.pop("rows") >= 0
        # Rows are numbered by their place, so the batch size changes nothing.
        rows = i * len(present) + np.arange(len(present), dtype="int32")
        ids, mask = draw(
            {k: ops.convert_to_tensor(v) for k, v in inputs.items()},
            ops.convert_to_tensor(rows),
            ops.convert_to_tensor(seed, dtype="int32"),
        )
        drawn += _tokens(ids, mask, present)
        bar.update(i + 1)
    return drawn


def _tokens(ids, mask, present):
    ids = ops.convert_to_numpy(ids)[present]
    mask = ops.convert_to_numpy(mask)[present]
    length = ids.shape[-1]
    pairs = zip(ids.reshape(-1, length), mask.reshape(-1, length))
    return [row[kept].tolist() for row, kept in pairs]
