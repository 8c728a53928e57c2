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


class TextTokenizer:
    """Encodes prompts and decodes completions.

    Works on KerasHub's tokenizer directly, not on the preprocessor, which
    truncates long prompts silently and, for Gemma 3, needs TensorFlow.

    Args:
        preprocessor: the `preprocessor` of a KerasHub `CausalLM`, or a
            KerasHub tokenizer.

    Attributes:
        tokenizer: the KerasHub tokenizer.
    """

    def __init__(self, preprocessor):
        if not hasattr(preprocessor, "tokenizer"):
            preprocessor = types.SimpleNamespace(tokenizer=preprocessor)
        self.tokenizer = preprocessor.tokenizer
        self.adds_start = getattr(preprocessor, "add_start_token", True)

    @property
    def start(self):
        """list of int. The tokens before every prompt.

        Looked up at each use: the tokenizer of a model that is being loaded
        has no vocabulary yet.
        """
        start = getattr(self.tokenizer, "start_token_id", None)
        return [start] if self.adds_start and start is not None else []

    def encode(self, prompts):
        """Returns one list of token ids for each of `prompts`."""
        return [[*self.start, *ids] for ids in self.encode_bare(prompts)]

    def encode_bare(self, texts):
        """As `encode`, without the start token: for texts that continue."""
        if not texts:
            return []
        token_ids = self.tokenizer(list(texts))
        if hasattr(token_ids, "to_list"):
            token_ids = token_ids.to_list()
        return [[int(i) for i in ids] for ids in token_ids]

    def decode(self, token_ids):
        """Turns lists of token ids into strings without special tokens."""
        special = self.special_token_ids()
        kept = [
            [int(i) for i in ids if int(i) not in special] for ids in token_ids
        ]
        # Tokenizers disagree about empty lists, so these never reach them.
        texts = iter(self._detokenize([ids for ids in kept if ids]))
        return [next(texts) if ids else "" for ids in kept]

    def _detokenize(self, token_ids):
        if not token_ids:
            return []
        texts = self.tokenizer.detokenize(token_ids)
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
        """The ids that end a completion, as in `CausalLM.generate`.

        The end token, the second one of Llama 3, and Gemma's end of turn if
        the vocabulary has it: `token_to_id` would return the id of the unknown
        token if not.
        """
        stops = {self.tokenizer.end_token_id}
        stops.add(getattr(self.tokenizer, "end_token2_id", None))
        stops.add(self.end_of_turn_token_id())
        return tuple(sorted(stop for stop in stops if stop is not None))

    def end_of_turn_token_id(self):
        """The id of Gemma's end of turn, `None` if there is none."""
        vocabulary = self.tokenizer.get_vocabulary()
        if END_OF_TURN in vocabulary:
            return vocabulary.index(END_OF_TURN)
        return None
