"""Strings to token ids and back, by the policy's own tokenizer."""

import functools
import math
import warnings

import numpy as np

from keras_bond.data.chat import END_OF_TURN
from keras_bond.data.origin import MEMORY


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
    truncates long prompts silently and, for Gemma 3, needs TensorFlow. A prompt
    has the token ids that it has in `policy.generate`, except that a start
    token which is written out is the one that is added.

    Args:
        preprocessor: the `preprocessor` of a KerasHub `CausalLM`, or a
            KerasHub tokenizer.

    Attributes:
        tokenizer: the KerasHub tokenizer.
    """

    def __init__(self, preprocessor):
        self.tokenizer = getattr(preprocessor, "tokenizer", preprocessor)
        adds_start = getattr(preprocessor, "add_start_token", True)
        if not adds_start and self.start:
            warnings.warn(
                "The start token is added to every prompt, as `policy.generate`"
                " does whatever the preprocessor's `add_start_token` says. "
                "Received: add_start_token=False",
                stacklevel=2,
            )

    @property
    def start(self):
        """list of int. The tokens before every prompt.

        Looked up at each use: the tokenizer of a model that is being loaded
        has no vocabulary yet.
        """
        start = getattr(self.tokenizer, "start_token_id", None)
        return [] if start is None else [start]

    @property
    def start_text(self):
        """str. How the start token is written, "" if there is none."""
        return getattr(self.tokenizer, "start_token", "") if self.start else ""

    def encode(self, prompts, origin=MEMORY):
        """Returns one list of token ids for each of `prompts`.

        Args:
            prompts: list of str.
            origin: the `Origin` of the prompts.

        Raises:
            ValueError: if two start tokens are written out in a prompt.
        """
        texts = [
            self._without_start(text, origin.name(i))
            for i, text in enumerate(prompts)
        ]
        return [[*self.start, *ids] for ids in self.encode_bare(texts)]

    def _without_start(self, text, name):
        """Removes a start token at the beginning, where `encode` adds it."""
        start = self.start_text
        if not start or start not in text:
            return text
        rest = text.removeprefix(start)
        # In GPT-2 the same token also stands between two texts.
        separates = self.tokenizer.end_token_id in self.start
        again = rest.startswith(start) if separates else text.count(start) > 1
        if again:
            raise ValueError(
                f"A prompt must have one start token, {start!r}, which may be "
                "written out at its beginning: remove the others, or pass "
                "token ids if the model was trained with several. Received: "
                f"{text[:80]!r} as {name}"
            )
        return rest

    def encode_bare(self, texts):
        """As `encode`, without the start token: for texts that continue."""
        if not texts:
            return []
        token_ids = self.tokenizer(list(texts))
        for method in ("to_list", "numpy", "tolist"):
            if hasattr(token_ids, method):
                token_ids = getattr(token_ids, method)()
        return [
            ids.tolist() if hasattr(ids, "tolist") else list(ids)
            for ids in token_ids
        ]

    def decode(self, token_ids):
        """Turns lists of token ids into strings without special tokens."""
        special, size = self.special_token_ids(), math.inf
        if hasattr(self.tokenizer, "proto"):
            # An embedding padded to a round size has ids without a token, and
            # unlike other tokenizers SentencePiece does not skip them.
            size = self.tokenizer.vocabulary_size()
        kept = [
            [int(i) for i in ids if int(i) < size and int(i) not in special]
            for ids in token_ids
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
