"""Strings to token ids and back, by the policy's own tokenizer."""

import functools
import types

import numpy as np

from keras_bond.data.chat import END_OF_TURN


@functools.lru_cache(maxsize=16)
def same_tokens(tokenizer, other):
    """Whether two tokenizers give the same ids the same meaning."""
    return tokenizer is other or (
        type(tokenizer) is type(other)
        and tokenizer.get_vocabulary() == other.get_vocabulary()
    )


class TextCodec:
    """Encodes prompts and decodes completions.

    Works on KerasHub's tokenizer directly, not on the preprocessor: that one
    cuts a long prompt without a word, and Gemma 3's needs TensorFlow.

    Args:
        preprocessor: the `preprocessor` of a KerasHub `CausalLM`, or a
            tokenizer.
    """

    def __init__(self, preprocessor):
        if not hasattr(preprocessor, "tokenizer"):
            preprocessor = types.SimpleNamespace(tokenizer=preprocessor)
        self.tokenizer = preprocessor.tokenizer
        self.adds_start = getattr(preprocessor, "add_start_token", True)

    @property
    def start(self):
        """list of int. What stands before every prompt.

        Asked for when it is needed: the tokenizer of a model that is being
        loaded has no vocabulary yet.
        """
        start = getattr(self.tokenizer, "start_token_id", None)
        return [start] if self.adds_start and start is not None else []

    def encode(self, prompts):
        """Returns one list of token ids for each of `prompts`."""
        return [[*self.start, *ids] for ids in self.encode_bare(prompts)]

    def encode_bare(self, texts):
        """As `encode`, without the start token: texts that go on."""
        if not texts:
            return []
        token_ids = self.tokenizer(list(texts))
        if hasattr(token_ids, "to_list"):
            token_ids = token_ids.to_list()
        return [[int(i) for i in ids] for ids in token_ids]

    def decode(self, rows):
        """Turns lists of token ids into strings, special tokens left out."""
        special = self.special_token_ids()
        kept = [[int(i) for i in row if int(i) not in special] for row in rows]
        # Tokenizers disagree about empty rows, so these never reach them.
        texts = iter(self._detokenize([row for row in kept if row]))
        return [next(texts) if row else "" for row in kept]

    def _detokenize(self, rows):
        if not rows:
            return []
        texts = self.tokenizer.detokenize(rows)
        if hasattr(texts, "numpy"):
            texts = texts.numpy()
        texts = np.asarray(texts, dtype=object).reshape(-1).tolist()
        return [t.decode("utf-8") if isinstance(t, bytes) else t for t in texts]

    def special_token_ids(self):
        """The ids that never appear in text: padding, start, stop tokens."""
        return {
            *getattr(self.tokenizer, "special_token_ids", []),
            *self.stop_token_ids(),
        }

    def stop_token_ids(self):
        """The ids that end a completion, as `CausalLM.generate` has them.

        The end token, the second one of Llama 3, and Gemma's end of turn where
        the vocabulary really has it: `token_to_id` answers with the id of the
        unknown token where it has not.
        """
        stops = {self.tokenizer.end_token_id}
        stops.add(getattr(self.tokenizer, "end_token2_id", None))
        stops.add(self.end_of_turn_token_id())
        return tuple(sorted(stop for stop in stops if stop is not None))

    def end_of_turn_token_id(self):
        """The id of Gemma's end of turn, `None` where there is none."""
        vocabulary = self.tokenizer.get_vocabulary()
        if END_OF_TURN in vocabulary:
            return vocabulary.index(END_OF_TURN)
        return None
