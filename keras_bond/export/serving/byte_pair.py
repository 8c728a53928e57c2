"""Byte-pair tokenizer of the served model."""

import re

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from keras_bond.export.byte_pair import BREAK

# The rank of a pair that is not merged.
NONE = 2**40
# Padding of rows of ids, and what a table does not have.
MISSING = np.int64(-1)


class GraphBytePair(tf.Module):
    """Byte-level byte-pair encoding in TensorFlow operations.

    Args:
        spec: dict. See `keras_bond.export.byte_pair.graph_spec`.
    """

    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        characters = _byte_characters()
        byte_of = {character: byte for byte, character in characters.items()}
        tokens = {
            _raw(token, byte_of): i for token, i in spec["vocabulary"].items()
        }
        added = {x.encode(): i for x, i in spec["added_tokens"].items()}
        self.size = max({*tokens.values(), *added.values()}) + 1
        pieces = [b""] * self.size
        for token, i in {**tokens, **added}.items():
            pieces[i] = token
        self.pieces = tf.constant(pieces)
        vocabulary = spec["vocabulary"]
        self.byte_ids = tf.constant(
            [vocabulary.get(characters[byte], -1) for byte in range(256)],
            tf.int64,
        )
        self.token_ids = _table(tokens, tf.string, -1)
        self.added_ids = _table(added, tf.string, -1)
        pairs = {
            left * self.size + right: rank
            for rank, (left, right, _) in enumerate(spec["merges"])
        }
        self.ranks = _table(pairs or {-1: NONE}, tf.int64, NONE)
        self.merged = tf.constant(
            [m[2] for m in spec["merges"]] or [0], "int64"
        )

    def vocab_size(self):
        """Returns the number of ids, as `SentencepieceTokenizer` does."""
        return self.size

    def tokenize(self, texts):
        """Maps str `(rows,)` to ragged int32 ids."""
        if self.spec["normalization"]:
            texts = tf_text.normalize_utf8(texts, self.spec["normalization"])
        texts = self._without_breaks(texts)
        parts = self._split_at_added_tokens(texts)
        added = self.added_ids.lookup(parts.flat_values)
        words = self._split_into_words(parts.flat_values, added >= 0)
        word_ids = self._ids(words.flat_values)
        added = tf.gather(added, words.value_rowids())
        ids = tf.where((added >= 0)[:, None], _first(added, word_ids), word_ids)
        ids = tf.ragged.boolean_mask(tf.RaggedTensor.from_tensor(ids), ids >= 0)
        # Rows of parts of words of ids: one row of ids.
        nested = parts.with_flat_values(words.with_flat_values(ids))
        return tf.cast(nested.merge_dims(1, -1), tf.int32)

    def detokenize(self, token_ids):
        """Maps ragged ids to str `(rows,)`, with a mark for broken bytes."""
        texts = tf.strings.reduce_join(
            tf.ragged.map_flat_values(tf.gather, self.pieces, token_ids), axis=1
        )
        return tf.strings.unicode_transcode(
            texts, "UTF-8", "UTF-8", errors="replace"
        )

    def _without_breaks(self, texts):
        found = tf.strings.regex_full_match(texts, f"(?s).*{BREAK}.*")
        check = tf.debugging.Assert(
            ~tf.reduce_any(found),
            ["Texts must not contain the noncharacter U+10FFFF."],
        )
        with tf.control_dependencies([check]):
            return tf.identity(texts)

    def _split_at_added_tokens(self, texts):
        tokens = sorted(self.spec["added_tokens"], key=len, reverse=True)
        if tokens:
            pattern = "|".join(re.escape(token) for token in tokens)
            texts = tf.strings.regex_replace(
                texts, f"({pattern})", rf"{BREAK}\1{BREAK}"
            )
        return _split(texts)

    def _split_into_words(self, parts, is_added):
        texts = parts
        for look, pattern in self.spec["patterns"]:
            if look:
                texts = tf.strings.regex_replace(texts, look, rf"{BREAK}\1\2")
            texts = tf.strings.regex_replace(
                texts, f"({pattern})", rf"{BREAK}\1{BREAK}"
            )
        return _split(tf.where(is_added, parts, texts))

    def _ids(self, words):
        """Maps words `(words,)` to ids `(words, length)`, padded with -1."""
        words, places = tf.unique(words)
        codes = tf.strings.bytes_split(words)
        codes = codes.with_flat_values(
            tf.io.decode_raw(codes.flat_values, tf.uint8, fixed_length=1)[:, 0]
        )
        ids = tf.ragged.map_flat_values(
            lambda x: tf.gather(self.byte_ids, tf.cast(x, tf.int32)), codes
        )
        # One more column, so that there is a pair.
        ids = tf.pad(
            ids.to_tensor(MISSING), [(0, 0), (0, 2)], constant_values=MISSING
        )
        ids, _ = tf.while_loop(
            lambda ids, merges: merges,
            self._merge,
            (ids, tf.constant(True)),
            shape_invariants=(tf.TensorShape((None, None)), tf.TensorShape(())),
        )
        if self.spec["whole_words"]:
            whole = self.token_ids.lookup(words)
            ids = tf.where((whole >= 0)[:, None], _first(whole, ids), ids)
        return tf.gather(ids, places)

    def _merge(self, ids, _):
        """Merges the best pair of each word, the first one of several."""
        left, right = ids[:, :-1], ids[:, 1:]
        pairs = tf.where(right < 0, MISSING, left * self.size + right)
        ranks = self.ranks.lookup(pairs)
        best = tf.reduce_min(ranks, axis=1)
        merges = best < NONE
        merged = tf.gather(self.merged, tf.where(merges, best, np.int64(0)))
        length = tf.shape(ids)[1]
        place = tf.argmin(ranks, axis=1, output_type=tf.int32)
        is_left = (tf.range(length) == place[:, None]) & merges[:, None]
        ids = tf.where(is_left, merged[:, None], ids)
        is_gone = tf.roll(is_left, 1, axis=1)
        order = tf.argsort(tf.cast(is_gone, tf.int32), axis=1, stable=True)
        ids = tf.gather(tf.where(is_gone, MISSING, ids), order, batch_dims=1)
        return ids, tf.reduce_any(merges)


def _first(first, ids):
    """Rows `(first, -1, -1, ...)` of the shape of `ids`."""
    rest = tf.fill(tf.shape(ids[:, 1:]), MISSING)
    return tf.concat([first[:, None], rest], axis=1)


def _split(texts):
    pieces = tf.strings.split(texts, BREAK)
    return tf.ragged.boolean_mask(pieces, pieces != "")


def _table(values, key_dtype, default):
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            list(values), list(values.values()), key_dtype, tf.int64
        ),
        default,
    )


def _byte_characters():
    """Maps bytes to the characters of GPT-2's vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{byte: chr(byte) for byte in printable},
        **{byte: chr(256 + i) for i, byte in enumerate(others)},
    }


def _raw(token, byte_of):
    """The bytes of a token; those of an added token are its text."""
    if all(character in byte_of for character in token):
        return bytes(byte_of[character] for character in token)
    return token.encode()
