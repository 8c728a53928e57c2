"""Signatures of the served model."""

import tensorflow as tf
from keras import ops

from keras_bond import rollouts
from keras_bond.export.serving.sampler import RowSampler
from keras_bond.export.serving.text import GraphText
from keras_bond.export.serving.text import graph_tokenizer
from keras_bond.formulas import likelihood
from keras_bond.formulas import masks
from keras_bond.formulas import sequences
from keras_bond.rollouts import network


class Signatures:
    """The functions of a served model, over one policy and one tokenizer.

    The first axis of all inputs and outputs is the batch, and rows do not
    depend on each other, so that a server can batch requests.

    Args:
        policy: a `keras_hub.models.CausalLM` on TensorFlow.
        job: dict. See `keras_bond.export.saved_model`.
        reward: a Keras model that scores token ids, or `None`.
    """

    def __init__(self, policy, job, reward=None):
        self.policy = policy
        self.reward = reward
        self.text = None
        if job["serves_text"]:
            tokenizer = graph_tokenizer(policy.preprocessor.tokenizer)
            self.text = GraphText(tokenizer, job)
        self.max_prompt_length = job["max_prompt_length"]
        self.max_new_tokens = job["max_new_tokens"]
        self.stop_token_ids = tuple(job["stop_token_ids"])
        self.best_of_n = job["best_of_n"]
        # As separate functions they are stored once in the graph, although
        # several signatures call them.
        integers = tf.TensorSpec((None,), tf.int32)
        numbers = tf.TensorSpec((None,), tf.float32)
        prompts = tf.TensorSpec((None, self.max_prompt_length), tf.int32)
        drawn = tf.TensorSpec((None, self.max_new_tokens), tf.int32)
        uniforms = tf.TensorSpec((None, self.max_new_tokens), tf.float32)
        self._decode = tf.function(
            self._decode,
            autograph=False,
            input_signature=[prompts, integers, numbers, uniforms],
        )
        self._score = tf.function(
            self._score,
            autograph=False,
            input_signature=[prompts, integers, drawn, integers],
        )

    def trace(self):
        """Returns a dict that maps names to concrete functions."""
        texts = tf.TensorSpec((None,), tf.string)
        ids = tf.TensorSpec((None, None), tf.int32)
        integers = tf.TensorSpec((None,), tf.int32)
        numbers = tf.TensorSpec((None,), tf.float32)
        prompt = {"prompt_ids": ids, "prompt_lengths": integers}
        completion = {"completion_ids": ids, "completion_lengths": integers}
        sampling = {"temperature": numbers, "seed": integers}
        inputs = {
            "generate_tokens": {**prompt, **sampling},
            "score_tokens": {**prompt, **completion},
        }
        if self.text is not None:
            inputs |= {
                "serving_default": {"prompts": texts},
                "generate": {"prompts": texts, **sampling},
                "score": {"prompts": texts, "completions": texts},
            }
        if self.best_of_n:
            inputs["sample"] = {"prompts": texts, **sampling}
        return {
            name: _trace(getattr(self, name), specs)
            for name, specs in inputs.items()
        }

    def serving_default(self, prompts):
        """Greedy completions."""
        zeros = tf.zeros_like(prompts, tf.int32)
        return self.generate(prompts, tf.cast(zeros, tf.float32), zeros)

    def generate(self, prompts, temperature, seed):
        """One completion per prompt; greedy if the temperature is 0."""
        ids, lengths = self.text.encode_prompts(prompts)
        drawn = self._draw(ids, lengths, temperature, seed)
        return {"completions": self.text.decode(*drawn)}

    def generate_tokens(self, prompt_ids, prompt_lengths, temperature, seed):
        """`generate` for token ids, which include start token and template."""
        ids, lengths = self._given_prompts(prompt_ids, prompt_lengths)
        drawn, drawn_lengths = self._draw(ids, lengths, temperature, seed)
        return {"completion_ids": drawn, "completion_lengths": drawn_lengths}

    def score(self, prompts, completions):
        """`log π` of completions, and of stopping after them."""
        return self._score(
            *self.text.encode_prompts(prompts),
            *self.text.encode_completions(completions),
        )

    def score_tokens(
        self, prompt_ids, prompt_lengths, completion_ids, completion_lengths
    ):
        """`score` for token ids."""
        prompts = self._given_prompts(prompt_ids, prompt_lengths)
        limit = self.max_new_tokens
        completions = self._given(
            "completion", completion_ids, completion_lengths, 0, limit
        )
        return self._score(*prompts, *completions)

    def sample(self, prompts, temperature, seed):
        """`best_of_n` completions per prompt, with `log π` and rewards."""
        ids, lengths = self.text.encode_prompts(prompts)
        ids = ops.repeat(ids, self.best_of_n, axis=0)
        lengths = ops.repeat(lengths, self.best_of_n, axis=0)
        drawn = self._draw(ids, lengths, temperature, seed, self.best_of_n)
        outputs = {
            "completions": self.text.decode(*drawn),
            "log_probs": self._score(ids, lengths, *drawn)["log_probs"],
        }
        if self.reward is not None:
            outputs["rewards"] = self._rewards(ids, lengths, *drawn)
        outputs = {
            name: tf.reshape(value, (-1, self.best_of_n))
            for name, value in outputs.items()
        }
        if self.reward is not None:
            best = tf.argmax(outputs["rewards"], axis=1)
            outputs["best"] = tf.gather(
                outputs["completions"], best, batch_dims=1
            )
        return outputs

    def _rewards(self, ids, lengths, completion_ids, completion_lengths):
        token_ids = sequences.join(ids, lengths, completion_ids)
        ends = lengths + completion_lengths
        inputs = {
            "token_ids": token_ids,
            "padding_mask": tf.sequence_mask(ends, token_ids.shape[1]),
        }
        return tf.cast(self.reward(inputs, training=False), tf.float32)

    def _given_prompts(self, prompt_ids, prompt_lengths):
        limit = self.max_prompt_length
        return self._given("prompt", prompt_ids, prompt_lengths, 1, limit)

    def _given(self, name, token_ids, lengths, least, limit):
        token_ids, lengths = _given(name, token_ids, lengths, least, limit)
        size = network.vocabulary_size(self.policy.backbone)
        known = tf.debugging.Assert(
            tf.reduce_all((token_ids >= 0) & (token_ids < size)),
            [f"`{name}_ids` must be in the vocabulary, in [0, {size})."],
        )
        with tf.control_dependencies([known]):
            return tf.identity(token_ids), lengths

    def _draw(self, ids, lengths, temperature, seed, num_samples=1):
        # Every prompt uses the random numbers of the first prompt in
        # `Bond.generate`, which therefore draws the same completion for a seed.
        uniforms = rollouts.uniform(
            seed[:, None, None],
            "generate",
            tf.zeros_like(seed),
            num_samples,
            self.max_new_tokens,
        )
        uniforms = tf.reshape(uniforms, (-1, self.max_new_tokens))
        temperature = ops.repeat(temperature, num_samples, axis=0)
        return self._decode(ids, lengths, temperature, uniforms)

    def _decode(self, ids, lengths, temperature, uniforms):
        token_ids = tf.pad(ids, [(0, 0), (0, self.max_new_tokens)])
        inputs = {
            "token_ids": token_ids,
            "padding_mask": tf.sequence_mask(lengths, token_ids.shape[1]),
        }
        self.policy.sampler = RowSampler(
            lengths, temperature, uniforms, self.stop_token_ids
        )
        token_ids = self.policy.generate_step(inputs, None)["token_ids"]
        places = lengths[:, None] + tf.range(self.max_new_tokens)[None, :]
        drawn = tf.gather(token_ids, places, batch_dims=1)
        mask = masks.completion_mask(drawn, self.stop_token_ids)
        drawn = tf.where(mask, drawn, 0)
        return drawn, tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)

    def _score(self, ids, lengths, completion_ids, completion_lengths):
        # Row by row, because the logits of a whole batch need much memory.
        log_probs, end_log_probs = tf.map_fn(
            lambda row: self._score_row(*row),
            (ids, lengths, completion_ids, completion_lengths),
            fn_output_signature=(tf.float32, tf.float32),
            parallel_iterations=1,
        )
        return {"log_probs": log_probs, "end_log_probs": end_log_probs}

    def _score_row(self, ids, length, completion_ids, completion_length):
        # One more position, which predicts the token after the completion.
        completion_ids = tf.pad(completion_ids, [(0, 1)])[None]
        mask = tf.sequence_mask([completion_length], completion_ids.shape[1])
        hidden = rollouts.completion_hidden(
            self.policy, ids[None], length[None], completion_ids, mask
        )
        logits = rollouts.Head(self.policy).logits(hidden)
        log_probs = likelihood.sequence_log_probs(
            likelihood.token_log_probs(logits, completion_ids), mask
        )
        following = tf.cast(logits[0, completion_length], tf.float32)
        stops = tf.gather(following, self.stop_token_ids)
        end_log_prob = ops.logsumexp(stops) - ops.logsumexp(following)
        return log_probs[0], end_log_prob


def _trace(function, specs):
    named = {k: tf.TensorSpec(s.shape, s.dtype, k) for k, s in specs.items()}
    return tf.function(function, autograph=False).get_concrete_function(**named)


def _given(name, token_ids, lengths, least, limit):
    """Truncates or pads the ids of a request to `limit`, and checks lengths.

    The padding in a request may have any value, so only `lengths` is used.
    """
    longest = tf.minimum(tf.shape(token_ids)[1], limit)
    checks = [
        tf.debugging.assert_greater_equal(
            lengths, least, f"`{name}_lengths` must be at least {least}."
        ),
        tf.debugging.assert_less_equal(
            lengths,
            longest,
            f"`{name}_lengths` must not exceed `{name}_ids`, nor {limit}.",
        ),
    ]
    with tf.control_dependencies(checks):
        token_ids = token_ids[:, :limit]
    missing = limit - tf.shape(token_ids)[1]
    token_ids = tf.pad(token_ids, [(0, 0), (0, missing)])
    token_ids = tf.where(tf.sequence_mask(lengths, limit), token_ids, 0)
    return tf.ensure_shape(token_ids, (None, limit)), lengths
