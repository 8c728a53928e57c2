"""Text and conversations to token ids and back, by the policy's tokenizer."""

import functools
import math
import warnings

import numpy as np

from keras_bond.data import chat_formats
from keras_bond.data import chat_templates
from keras_bond.data.origin import MEMORY
from keras_bond.turns import check_chat

# Markers of all formats that are known.
KNOWN = {m for f in chat_formats.FORMATS for m in f.markers}


@functools.lru_cache(maxsize=16)
def same_tokens(tokenizer, other):
    """Whether two tokenizers give the same ids the same meaning."""
    # That of a Hugging Face folder may be of a subclass.
    is_one_kind = isinstance(tokenizer, type(other)) or isinstance(
        other, type(tokenizer)
    )
    return tokenizer is other or (
        is_one_kind and tokenizer.get_vocabulary() == other.get_vocabulary()
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
        chat_template: how conversations are written, see
            `keras_bond.data.render_chat`. With `"auto"`, an attribute
            `chat_template` of the tokenizer is used if it has one.
        backbone: the KerasHub backbone, or `None`. Models of one tokenizer may
            differ in their chat format.

    Attributes:
        tokenizer: the KerasHub tokenizer.
        chat_template: `"auto"`, a template in Jinja, or a function.
    """

    def __init__(self, preprocessor, chat_template="auto", backbone=None):
        self.tokenizer = getattr(preprocessor, "tokenizer", preprocessor)
        self.chat_template = chat_templates.of_tokenizer(
            self.tokenizer, chat_template
        )
        self._backbone = backbone
        self._whole_markers = set()
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

    @property
    def start_repeats(self):
        """bool. Whether a prompt may hold further start tokens.

        In GPT-2 the same token also stands between two texts, in SmolLM2
        before every turn.
        """
        separates = getattr(self.tokenizer, "end_token_id", None) in self.start
        return separates or self.start_text in chat_formats.OPENERS

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
        again = text.count(start) > 1
        if self.start_repeats:
            again = rest.startswith(start)
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

    def decode(self, token_ids, special=None):
        """Turns lists of token ids into strings without special tokens.

        Args:
            token_ids: lists of int.
            special: the ids to leave out. Defaults to `special_token_ids`.
        """
        special = set(self.special_token_ids() if special is None else special)
        size = math.inf
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

    @functools.cached_property
    def chat(self):
        """How conversations are written, `None` if that is not known.

        A `ChatFormat`, `JinjaTemplate` or `FunctionTemplate`.
        """
        if callable(self.chat_template):
            return chat_templates.FunctionTemplate(self.chat_template)
        if self.chat_template == "auto":
            vocabulary = self.tokenizer.get_vocabulary()
            return chat_formats.find(vocabulary, self._backbone)
        return chat_templates.JinjaTemplate(
            self.chat_template,
            {
                "bos_token": self._text_of("bos_token") or self.start_text,
                "eos_token": self._text_of("end_token"),
                "pad_token": self._text_of("pad_token"),
                "unk_token": "",
            },
        )

    def _text_of(self, name):
        return getattr(self.tokenizer, name, None) or ""

    def render(self, turns):
        """Writes a conversation up to where the model's answer continues.

        Args:
            turns: list of dicts, see `keras_bond.data.render_chat`.

        Returns:
            str. If it begins with a start token, `encode` adds no other.

        Raises:
            TypeError, ValueError: see `keras_bond.data.render_chat`.
        """
        check_chat(turns)
        if self.chat is None:
            known = [chat_format.name for chat_format in chat_formats.FORMATS]
            raise ValueError(
                "Conversations need a chat format, and the tokenizer has the "
                f"special tokens of none that is known ({', '.join(known)}): "
                "pass `chat_template=` the template of the model, in Jinja, "
                "the path of its Hugging Face folder, or a function. Received: "
                f"tokenizer of type {type(self.tokenizer).__name__}"
            )
        text = self.chat.render(turns)
        rest = text.removeprefix(self.start_text)
        for marker in chat_templates.written_markers(rest, turns):
            if marker not in self._whole_markers:
                self._check_marker(marker)
                self._whole_markers.add(marker)
        return text

    def _check_marker(self, marker):
        """Raises an error if the tokenizer reads a marker in pieces.

        One that the vocabulary lacks is plain text, as Llama 2's `[INST]`,
        unless it is of a format that is known.
        """
        is_whole = marker not in KNOWN
        if marker in self.tokenizer.get_vocabulary():
            (read,) = self.encode_bare([marker])
            is_whole = self._id_of(marker) in read
        if not is_whole:
            raise ValueError(
                "Every marker of a chat format must be read as one token: "
                "pass prompts as token ids, a template without the marker, or "
                "`unsplittable_tokens=` to a byte-pair tokenizer. "
                f"Received: marker {marker!r}, which a "
                f"{type(self.tokenizer).__name__} reads in pieces"
            )

    def stop_token_ids(self):
        """The ids that end a completion, as in `CausalLM.generate`.

        The end token, the second one of Llama 3, all of a Hugging Face folder,
        and what ends a turn in the chat format.
        """
        stops = {self.tokenizer.end_token_id}
        stops.update(getattr(self.tokenizer, "end_token_ids", ()))
        stops.add(getattr(self.tokenizer, "end_token2_id", None))
        stops.add(self.end_of_turn_token_id())
        return tuple(sorted(stop for stop in stops if stop is not None))

    def end_of_turn_token_id(self):
        """The id of what ends a turn in the chat format, `None` if unknown.

        A template that came with the tokenizer may fail: prompts that are
        strings do not need it.

        Raises:
            ImportError, ValueError: see `check_template`.
        """
        try:
            chat = self.chat
        except (ImportError, ValueError):
            own = getattr(self.tokenizer, "chat_template", None)
            if self.chat_template != own:
                raise
            return self._known_end
        if chat is None or not chat.end_of_turn:
            return self._known_end
        if chat.end_of_turn not in self.tokenizer.get_vocabulary():
            raise ValueError(
                "`chat_template` must end turns with a token of the model's "
                "vocabulary: pass the template that this model was trained "
                "with, or one that ends turns with its `eos_token`. Received: "
                f"a template that ends turns with {chat.end_of_turn!r}, "
                f"tokenizer of type {type(self.tokenizer).__name__}"
            )
        return self._id_of(chat.end_of_turn)

    def check_template(self):
        """Raises an error if the chat template is wrong.

        The tokenizer of a model that is being loaded has no vocabulary yet.

        Raises:
            ImportError: if it is in Jinja, which is not installed.
            ValueError: if it is not valid, or ends turns with what is not a
                token of the vocabulary.
        """
        if getattr(self.tokenizer, "end_token_id", None) is not None:
            self.end_of_turn_token_id()

    @functools.cached_property
    def _known_end(self):
        """The id of a known end of turn in the vocabulary, or `None`."""
        vocabulary = self.tokenizer.get_vocabulary()
        ends = [f.end_of_turn for f in chat_formats.FORMATS]
        return next((self._id_of(e) for e in ends if e in vocabulary), None)

    def _id_of(self, token):
        return int(self.tokenizer.token_to_id(token))
