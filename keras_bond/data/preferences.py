"""Preference pairs as padded token ids, the better completion first."""

import numpy as np

from keras_bond.arguments import is_number
from keras_bond.data import lengths
from keras_bond.data.origin import MEMORY
from keras_bond.data.origin import FileColumns
from keras_bond.data.origin import origin_of
from keras_bond.data.sources import read_all
from keras_bond.data.sources import read_rows
from keras_bond.data.table import PROMPT_NAMES
from keras_bond.data.table import check_unicode
from keras_bond.data.table import to_list
from keras_bond.turns import check_content
from keras_bond.turns import is_answer
from keras_bond.turns import is_chat

COLUMNS = (*PROMPT_NAMES, "chosen", "rejected", "margin")


def to_pairs(data):
    """Reads preference pairs in TRL's format.

    Args:
        data: list of dicts, dict of columns, data frame, Hugging Face data set
            or path of a `.jsonl` file, with `"chosen"`, `"rejected"`, and
            optionally `"prompts"` (or `"prompt"`) and `"margin"`. Texts are
            strings or conversations; without prompts, chosen and rejected are
            whole texts, or conversations that end with the answer to score.

    Returns:
        dict of lists: `prompts`, `chosen` and `rejected`, strings or
        conversations, and `margin`, float.

    Raises:
        TypeError: if a text is neither a string nor a conversation.
        ValueError: if there are no pairs, or a column is missing, unknown or
            of another length.
    """
    if isinstance(data, (list, tuple)) and not data:
        data = {"chosen": [], "rejected": []}
    pairs = read_rows(data)
    if hasattr(pairs, "column_names"):
        pairs = read_all(pairs)
    if not isinstance(pairs, dict):
        raise TypeError(
            "Preference pairs must be a list of dicts, a dict of columns, a "
            "data frame, a Hugging Face data set of one split, or the path of "
            "a .jsonl file. "
            f"Received: {data!r} of type {type(data).__name__}"
        )
    origin = origin_of(pairs)
    _check_names(pairs)
    pairs = {name: to_list(name, column) for name, column in pairs.items()}
    counts = {name: len(column) for name, column in pairs.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            "All columns must have one entry for each pair. "
            f"Received: columns of lengths {counts}"
        )
    count = counts["chosen"]
    if count == 0:
        raise ValueError(
            "There must be at least one preference pair. Received: no pairs"
        )
    prompts = next((pairs[n] for n in PROMPT_NAMES if n in pairs), None)
    margins = pairs.get("margin", [0.0] * count)
    columns = {
        "prompts": _texts("prompts", prompts or [""] * count, origin),
        "chosen": _texts("chosen", pairs["chosen"], origin),
        "rejected": _texts("rejected", pairs["rejected"], origin),
        "margin": [
            _margin(value, origin.name(i, "pair"))
            for i, value in enumerate(margins)
        ],
    }
    return FileColumns(columns, origin)


class CompletionEncoder:
    """Turns prompts with their completions into token ids.

    These are start token, prompt, completion, end token; in a conversation,
    the end token is that of the turn.

    Args:
        tokenizer: a `TextTokenizer`.
        max_length: int. Most tokens of a prompt with its completion.
        vocabulary_size: int. Token ids that the network has an embedding for.
        truncate: `None`, or `"left"` to keep the end of a text that is too
            long, after its start token.

    Raises:
        ValueError: when encoding, for a text that is too long or has a token
            outside of the vocabulary.
    """

    def __init__(self, tokenizer, max_length, vocabulary_size, truncate=None):
        self.tokenizer = tokenizer
        self.vocabulary_size = vocabulary_size
        self.max_length = max_length
        self.truncate = truncate
        self.end = tokenizer.tokenizer.end_token_id
        turn = tokenizer.end_of_turn_token_id()
        self.end_of_turn = self.end if turn is None else turn

    def __call__(self, prompts, completions, terminated=None, origin=MEMORY):
        """Encodes prompts with their completions.

        Args:
            prompts: list of str or conversations.
            completions: list of str; also of lists with one turn if prompts
                are conversations, and of whole conversations if prompts are
                empty.
            terminated: list of bool. Which completions get an end token.
                Defaults to all.
            origin: the `Origin` of the pairs of prompt and completion.

        Returns:
            list of lists of int.
        """
        if terminated is None:
            terminated = [True] * len(prompts)
        texts = [
            self._split(*pair, origin, i)
            for i, pair in enumerate(zip(prompts, completions))
        ]
        heads = self.tokenizer.encode([head for head, _, _ in texts], origin)
        tails = self.tokenizer.encode_bare([tail for _, tail, _ in texts])
        token_ids = []
        for i, (_, _, chat) in enumerate(texts):
            end = [self.end_of_turn if chat else self.end]
            ids = [*heads[i], *tails[i], *(end if terminated[i] else [])]
            token_ids.append(self._fit(ids, origin.name(i, "pair")))
        return token_ids

    def _split(self, prompt, completion, origin, i):
        """Returns head, tail, and whether it is a conversation."""
        try:
            head, tail, chat = self._join(prompt, completion)
            check_unicode(head + tail)
        except (TypeError, ValueError) as error:
            raise origin.error(error, i, "pair") from None
        return head, tail, chat

    def _join(self, prompt, completion):
        if is_chat(completion):
            turns = [*prompt, *completion] if is_chat(prompt) else completion
            head, tail = self._split_answer(turns)
            text = prompt if isinstance(prompt, str) else ""
            return text + head, tail, True
        if is_chat(prompt):
            return self.tokenizer.render(prompt), completion, True
        if not prompt:
            # A whole text, which may begin with a start token.
            return completion, "", False
        return prompt, completion, False

    def _split_answer(self, turns):
        """Splits a conversation into a prompt and the model's last answer.

        Args:
            turns: list of dicts; the last is the model's.

        Returns:
            `(prompt, answer)`: two str, the answer without its end of turn.

        Raises:
            ValueError: if the last turn is not the model's.
        """
        if not is_answer(turns[-1]):
            raise ValueError(
                "A conversation to be scored must end with a turn of "
                f'"assistant". Received: role={turns[-1]["role"]!r} in the '
                "last turn"
            )
        check_content(turns[-1])
        answer = turns[-1]["content"]
        strips = self.tokenizer.chat is None or self.tokenizer.chat.strips
        # An answer that has begun continues, perhaps with a space.
        continues = len(turns) > 1 and is_answer(turns[-2])
        if strips:
            answer = answer.rstrip() if continues else answer.strip()
        prompt = self.tokenizer.render(turns[:-1]) if len(turns) > 1 else ""
        return prompt, answer

    def _fit(self, ids, name):
        lengths.check_ids(ids, self.vocabulary_size, name)
        if len(ids) <= self.max_length:
            return ids
        if self.truncate is None:
            raise ValueError(
                "Prompt and completion must fit into `max_length` tokens: "
                'raise it, or pass truncate="left" to keep the end. Received: '
                f"{name} with {len(ids)} tokens, max_length={self.max_length}"
            )
        start = self.tokenizer.start
        return lengths.truncate_left(ids, self.max_length, start)


def encode_pairs(pairs, encode):
    """Tokenizes preference pairs.

    Args:
        pairs: dict of lists, see `to_pairs`.
        encode: a `CompletionEncoder`.

    Returns:
        `(x, margins)`: dict of `token_ids` int32 and `padding_mask` bool, both
        `(pairs, 2, length)`, chosen before rejected; and float32 `(pairs,)`.
    """
    prompts, origin = pairs["prompts"], origin_of(pairs)
    chosen = encode(prompts, pairs["chosen"], origin=origin)
    rejected = encode(prompts, pairs["rejected"], origin=origin)
    padded = lengths.pad(
        [ids for pair in zip(chosen, rejected) for ids in pair]
    )
    shape = (len(chosen), 2, padded["token_ids"].shape[1])
    x = {name: array.reshape(shape) for name, array in padded.items()}
    return x, np.array(pairs["margin"], "float32")


def _check_names(columns):
    unknown = sorted(map(str, set(columns) - set(COLUMNS)))
    missing = [n for n in ("chosen", "rejected") if n not in columns]
    if missing:
        raise ValueError(
            'Preference pairs must have columns "chosen" and "rejected". '
            f"Received: columns {sorted(columns)}, without {missing}"
        )
    if set(PROMPT_NAMES) <= set(columns):
        raise ValueError(
            "Preference pairs must have one column of prompts: leave out "
            f"`prompt` or `prompts`. Received: columns {sorted(columns)}"
        )
    if unknown:
        raise ValueError(
            f"Preference pairs may have the columns {list(COLUMNS)} only: "
            f"leave others out. Received: unknown columns {unknown}"
        )


def _texts(name, values, origin):
    for i, value in enumerate(values):
        if not (isinstance(value, str) or is_chat(value)):
            raise TypeError(
                f"`{name}` must be strings, or conversations: lists of dicts "
                f"with `role` and `content`. Received: {value!r} of type "
                f"{type(value).__name__} in {origin.name(i, 'pair')}"
            )
    return values


def _margin(value, name):
    try:
        if is_number(value):
            return float(value)
    except OverflowError:
        # Of an integer that no float holds.
        pass
    raise ValueError(
        "`margin` must be finite numbers, by how much chosen is better. "
        f"Received: margin={value!r} in {name}"
    )
