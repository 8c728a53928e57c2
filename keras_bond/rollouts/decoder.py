"""Draws completions token by token, from the full distribution."""

from keras import ops
from keras import tree

from keras_bond import backend
from keras_bond import formulas
from keras_bond.rollouts import network
from keras_bond.rollouts import sequences


def inverse_cdf_sample(log_probs, uniforms):
    """Picks tokens by inverting the cumulative distribution.

    One random number a row instead of one for every entry of the vocabulary.

    Args:
        log_probs: float32 tensor `(rows, vocabulary)`, normalised.
        uniforms: float32 tensor `(rows,)` in [0, 1).

    Returns:
        int32 tensor `(rows,)`. A token of probability 0 is never picked.
    """
    probs = ops.exp(log_probs)
    cumulative = ops.cumsum(probs, axis=-1)
    # Rounding may leave the sum a little off 1 and make it step backwards.
    targets = uniforms[:, None] * cumulative[:, -1:] * (1.0 - 1e-7)
    reached = ops.logical_and(cumulative > targets, probs > 0)
    return ops.cast(ops.argmax(reached, axis=-1), "int32")


class Decoder:
    """Draws several completions for each prompt of a batch.

    The prompts are read once, whatever the number of samples; their key-value
    cache is then repeated. A row stops counting at its first stop token, and
    the loop ends when all rows have ended.

    Args:
        policy: a `keras_hub.models.CausalLM` with a key-value cache.
        max_prompt_length: int. Tokens in a padded prompt.
        max_completion_length: int. Most tokens drawn for a row.
        stop_token_ids: tuple of int. Tokens that end a completion.
        temperature: float. Divides the logits. Defaults to 1.
    """

    def __init__(
        self,
        policy,
        max_prompt_length,
        max_completion_length,
        stop_token_ids,
        temperature=1.0,
    ):
        self.policy = policy
        self.max_prompt_length = max_prompt_length
        self.max_completion_length = max_completion_length
        self.stop_token_ids = tuple(stop_token_ids)
        self.temperature = temperature
        self.cache_builder = network.CacheBuilder(
            policy, max_prompt_length + max_completion_length
        )

    def __call__(self, prompt_ids, prompt_lengths, uniforms):
        """Draws `num_samples` completions for each prompt.

        Args:
            prompt_ids: int32 tensor `(batch, max_prompt_length)`.
            prompt_lengths: int32 tensor `(batch,)`, at least 1 each.
            uniforms: float32 tensor
                `(batch, num_samples, max_completion_length)`.

        Returns:
            dict of tensors over `(batch, num_samples)`:
            `completion_ids` int32 `(..., max_completion_length)`, padded with
            0 behind the end; `log_probs` float32, `log π(y|x)` as decoded, in
            nats; `entropies` float32, mean entropy of the next-token
            distribution over the completion's tokens, in nats a token.
        """
        batch_size, num_samples, length = uniforms.shape
        cache = self._read_prompts(prompt_ids)
        prompt_ids, lengths, cache = (
            sequences.repeat_rows(prompt_ids, num_samples),
            sequences.repeat_rows(prompt_lengths, num_samples),
            self._repeat_cache(cache, num_samples),
        )
        uniforms = ops.reshape(uniforms, (batch_size * num_samples, length))
        state = self._start(prompt_ids, cache)
        state = backend.decode_loop(
            lambda index, state: self._step(index, state, lengths, uniforms),
            lambda state: ops.all(state["ended"]),
            ops.min(prompt_lengths),
            self.max_prompt_length + self.max_completion_length,
            state,
        )
        return self._collect(state, lengths, (batch_size, num_samples))

    def _read_prompts(self, prompt_ids):
        cache = self.cache_builder.empty(prompt_ids.shape[0])
        return self.policy.call_with_cache(prompt_ids, cache, 0)[2]

    def _repeat_cache(self, cache, num_samples):
        return tree.map_structure(
            lambda leaf: sequences.repeat_rows(leaf, num_samples), cache
        )

    def _start(self, prompt_ids, cache):
        rows = prompt_ids.shape[0]
        return {
            "token_ids": ops.pad(
                prompt_ids, [(0, 0), (0, self.max_completion_length)]
            ),
            "ended": ops.zeros((rows,), "bool"),
            "log_probs": ops.zeros((rows,), "float32"),
            "entropies": ops.zeros((rows,), "float32"),
            "cache": cache,
        }

    def _step(self, index, state, prompt_lengths, uniforms):
        """Reads the token before `index`, decides the one at `index`."""
        rows = state["token_ids"].shape[0]
        previous = ops.slice(state["token_ids"], (0, index - 1), (rows, 1))
        logits, _, cache = self.policy.call_with_cache(
            previous, state["cache"], index - 1
        )
        logits = ops.cast(logits[:, 0], "float32") / self.temperature
        log_probs = ops.log_softmax(logits, axis=-1)
        position = index - prompt_lengths
        last = self.max_completion_length - 1
        draws = ops.take_along_axis(
            uniforms, ops.clip(position, 0, last)[:, None], axis=1
        )
        drawn = inverse_cdf_sample(log_probs, draws[:, 0])
        in_prompt = position < 0
        given = ops.slice(state["token_ids"], (0, index), (rows, 1))[:, 0]
        counts = ops.logical_not(ops.logical_or(in_prompt, state["ended"]))
        token = ops.where(counts, drawn, given)
        stops = formulas.is_any_of(token, self.stop_token_ids)
        stops = ops.logical_or(stops, position >= last)
        chosen = ops.take_along_axis(log_probs, drawn[:, None], axis=1)[:, 0]
        entropy = formulas.token_entropies(logits)
        return {
            "token_ids": ops.slice_update(
                state["token_ids"], (0, index), token[:, None]
            ),
            "ended": ops.logical_or(
                state["ended"], ops.logical_and(counts, stops)
            ),
            "log_probs": state["log_probs"] + ops.where(counts, chosen, 0.0),
            "entropies": state["entropies"] + ops.where(counts, entropy, 0.0),
            "cache": cache,
        }

    def _collect(self, state, prompt_lengths, leading):
        completion_ids = sequences.completion_window(
            state["token_ids"], prompt_lengths, self.max_completion_length
        )
        mask = formulas.completion_mask(completion_ids, self.stop_token_ids)
        length = ops.sum(ops.cast(mask, "float32"), axis=-1)
        return {
            "completion_ids": ops.reshape(completion_ids, (*leading, -1)),
            "log_probs": ops.reshape(state["log_probs"], leading),
            "entropies": ops.reshape(state["entropies"] / length, leading),
        }
