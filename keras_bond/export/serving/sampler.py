"""Sampler of the served model."""

import keras
from keras import ops

from keras_bond.formulas import masks
from keras_bond.rollouts.decoder import inverse_cdf_sample


class RowSampler:
    """Replaces the KerasHub sampler in `generate_step`.

    Rows are independent: each has its own temperature, random numbers and
    maximum length. A KerasHub sampler cannot be used, because it has one seed
    for the whole batch in a variable, which a server cannot set.

    Args:
        lengths: int32 tensor `(rows,)`. Number of tokens in each prompt.
        temperature: float32 tensor `(rows,)`. 0 means greedy decoding.
        uniforms: float32 tensor `(rows, max_new_tokens)` in [0, 1).
        stop_token_ids: tuple of int.
    """

    def __init__(self, lengths, temperature, uniforms, stop_token_ids):
        self.lengths = lengths
        self.temperature = temperature
        self.uniforms = uniforms
        self.stop_token_ids = stop_token_ids

    def __call__(self, next, prompt, cache, mask, **kwargs):
        """Fills `prompt` as KerasHub's samplers do, with 0 after each end."""
        columns = ops.arange(prompt.shape[1], dtype="int32")

        def is_unfinished(token_ids, cache, index, ended):
            unfinished = ops.logical_not(ops.all(ended))
            return ops.logical_and(index < prompt.shape[1], unfinished)

        def advance(token_ids, cache, index, ended):
            logits, _, cache = next(token_ids, cache, index)
            position = index - self.lengths
            drawn = self._pick(logits, position)
            drawn = ops.where(ended, ops.zeros_like(drawn), drawn)
            here = ops.logical_and(columns == index, ops.logical_not(mask))
            token_ids = ops.where(here, drawn[:, None], token_ids)
            ends = masks.is_any_of(drawn, self.stop_token_ids)
            ends = ops.logical_or(ends, position + 1 >= self.uniforms.shape[1])
            ends = ops.logical_and(ends, position >= 0)
            return token_ids, cache, index + 1, ops.logical_or(ended, ends)

        start = ops.min(self.lengths)
        ended = ops.zeros_like(self.lengths, dtype="bool")
        state = (prompt, cache, start, ended)
        return ops.while_loop(is_unfinished, advance, state)[0]

    def _pick(self, logits, position):
        logits = ops.cast(logits, "float32")
        # KerasHub's greedy sampler takes the argmax of the probabilities, where
        # rounding can create ties that the logits do not have.
        likeliest = ops.argmax(keras.activations.softmax(logits), axis=-1)
        is_greedy = self.temperature <= 0
        divisor = ops.where(is_greedy, 1.0, self.temperature)[:, None]
        last = self.uniforms.shape[1] - 1
        numbers = ops.take_along_axis(
            self.uniforms, ops.clip(position, 0, last)[:, None], axis=1
        )
        drawn, _ = inverse_cdf_sample(logits / divisor, numbers[:, 0])
        return ops.where(is_greedy, ops.cast(likeliest, "int32"), drawn)
