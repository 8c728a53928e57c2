"""Tokenizer of the served model."""

import re

import tensorflow as tf
import tensorflow_text as tf_text

from keras_bond.export.byte_pair import graph_spec
from keras_bond.export.serving.byte_pair import GraphBytePair


def graph_tokenizer(tokenizer):
    """Returns a tokenizer of KerasHub as one of TensorFlow operations."""
    proto = getattr(tokenizer, "proto", None)
    if proto is None:
        return GraphBytePair(graph_spec(tokenizer))
    # The tokenizer of the policy may have been garbage-collected by
    # `keras.utils.set_random_seed`, so a new one is made.
    return tf_text.SentencepieceTokenizer(model=proto, out_type=tf.int32)


class GraphText:
    """`keras_bond.data.tokenizer.TextTokenizer` in TensorFlow operations.

    Args:
        tokenizer: what `graph_tokenizer` returns.
        job: dict. See `keras_bond.export.saved_model`.
    """

    def __init__(self, tokenizer, job):
        self.tokenizer = tokenizer
        self.vocabulary_size = int(self.tokenizer.vocab_size())
        self.before, self.after = job["prompt_template"].split("{prompt}")
        self.start = job["start_token_ids"]
        self.start_text = re.escape(job["start_text"])
        self.start_repeats = job["start_repeats"]
        self.special_token_ids = job["special_token_ids"]
        self.max_prompt_length = job["max_prompt_length"]
        self.max_new_tokens = job["max_new_tokens"]

    def encode_prompts(self, prompts):
        """Maps str `(rows,)` to ids `(rows, max_prompt_length)` and lengths."""
        texts = tf.strings.join([self.before, prompts, self.after])
        tokens = self.tokenizer.tokenize(self._without_start(texts))
        rows = tf.shape(prompts)[0]
        start = tf.tile(tf.constant([self.start], tf.int32), [rows, 1])
        tokens = tf.concat([start, tokens], axis=1)
        some = tf.debugging.assert_positive(
            tokens.row_lengths(), "`prompts` must have at least one token each."
        )
        with tf.control_dependencies([some]):
            return _pad(tokens, "prompts", self.max_prompt_length)

    def _without_start(self, texts):
        """Removes a start token that is written out, like `TextTokenizer`."""
        if not self.start_text:
            return texts
        between = "" if self.start_repeats else ".*"
        several = f"(?s){between}{self.start_text}{between}{self.start_text}.*"
        one = tf.debugging.Assert(
            ~tf.reduce_any(tf.strings.regex_full_match(texts, several)),
            ["`prompts` must have one start token each."],
        )
        with tf.control_dependencies([one]):
            start = f"^{self.start_text}"
            return tf.strings.regex_replace(texts, start, "")

    def encode_completions(self, completions):
        """Maps str `(rows,)` to ids `(rows, max_new_tokens)` and lengths."""
        tokens = self.tokenizer.tokenize(completions)
        return _pad(tokens, "completions", self.max_new_tokens)

    def decode(self, completion_ids, lengths):
        """Maps ids `(rows, max_new_tokens)` to str without special tokens."""
        silent = tf.constant(self.special_token_ids, tf.int32)
        silent = tf.reduce_any(completion_ids[:, :, None] == silent, axis=-1)
        # A padded embedding can produce ids that the tokenizer does not have.
        known = completion_ids < self.vocabulary_size
        counts = tf.sequence_mask(lengths, self.max_new_tokens)
        kept = tf.ragged.boolean_mask(completion_ids, counts & known & ~silent)
        return self.tokenizer.detokenize(kept)


def _pad(tokens, name, limit):
    lengths = tf.cast(tokens.row_lengths(), tf.int32)
    fits = tf.debugging.assert_less_equal(
        lengths, limit, f"`{name}` must have at most {limit} tokens each."
    )
    with tf.control_dependencies([fits]):
        return tokens.to_tensor(shape=(None, limit)), tf.identity(lengths)
