"""Preference pairs as padded token ids, the better completion first."""

import math

import numpy as np

from keras_bond.data import lengths
from keras_bond.data.chat import is_chat
from keras_bond.data.chat import render_chat
from keras_bond.data.chat import split_answer
from keras_bond.data.sources import read_rows
from keras_bond.data.table import PROMPT_NAMES
from keras_bond.data.table import to_list

COLUMNS = (*PROMPT_NAMES, "chosen", "rejected", "margin")


def to_pairs(data):
    """Reads preference pairs in TRL's format.

    Args:
        data: list of dicts, dict of columns, Hugging Face data set or path of
            a `.jsonl` file, with `"chosen"`, `"rejected"`, and optionally
            `"prompts"` (or `"prompt"`) and `"margin"`. Texts are strings or
            conversations; without prompts, chosen and rejected are whole
            texts, or conversations that end with the answer to score.

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
    columns = read_rows(data)
    if not isinstance(columns, dict):
        raise TypeError(
            "Preference pairs must be a list of dicts, a dict of columns, a "
            "Hugging Face data set of one split, or the path of a .jsonl file. "
            f"Received: {data!r} of type {type(data).__name__}"
        )
    _check_names(columns)
    pairs = {name: to_list(name, column) for name, column in columns.items()}
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
    return {
        "prompts": _texts("prompts", prompts or [""] * count),
        "chosen": _texts("chosen", pairs["chosen"]),
        "rejected": _texts("rejected", pairs["rejected"]),
        "margin": [_margin(value, i) for i, value in enumerate(margins)],
    }


class CompletionEncoder:
    """Turns prompts with their completions into token ids.

    These are start token, prompt, completion, end token; in a conversation,
    the end token is that of the turn.

    Args:
        tokenizer: a `TextTokenizer`.
        max_length: int. Most tokens of a prompt with its completion.
        truncate: `None`, or `"left"` to keep the end of a text that is too
            long, after its start token.

    Raises:
        ValueError: when encoding, for a text that is too long.
    """

    def __init__(self, tokenizer, max_length, truncate=None):
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncate = truncate
        self.end = tokenizer.tokenizer.end_token_id
        turn = tokenizer.end_of_turn_token_id()
        self.end_of_turn = self.end if turn is None else turn

    def __call__(self, prompts, completions, terminated=None):
        """Encodes prompts with their completions.

        Args:
            prompts: list of str or conversations.
            completions: list of str; also of lists with one turn if prompts
                are conversations, and of whole conversations if prompts are
                empty.
            terminated: list of bool. Which completions get an end token.
                Defaults to all.

        Returns:
            list of lists of int.
        """
        if terminated is None:
            terminated = [True] * len(prompts)
        texts = [_join(*pair) for pair in zip(prompts, completions)]
        heads = self.tokenizer.encode([head for head, _, _ in texts])
        tails = self.tokenizer.encode_bare([tail for _, tail, _ in texts])
        token_ids = []
        for i, (_, _, chat) in enumerate(texts):
            end = [self.end_of_turn if chat else self.end]
            ids = [*heads[i], *tails[i], *(end if terminated[i] else [])]
            token_ids.append(self._fit(i, ids))
        return token_ids

    def _fit(self, i, ids):
        if len(ids) <= self.max_length:
            return ids
        if self.truncate is None:
            raise ValueError(
                "Prompt and completion must fit into `max_length` tokens: "
                'raise it, or pass truncate="left" to keep the end. Received: '
                f"row {i} with {len(ids)} tokens, max_length={self.max_length}"
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
    chosen = encode(pairs["prompts"], pairs["chosen"])
    rejected = encode(pairs["prompts"], pairs["rejected"])
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


def _texts(name, values):
    for i, value in enumerate(values):
        if not (isinstance(value, str) or is_chat(value)):
            raise TypeError(
                f"`{name}` must be strings, or conversations: lists of dicts "
                f"with `role` and `content`. Received: {value!r} of type "
                f"{type(value).__name__} in pair {i}"
            )
    return values


def _margin(value, i):
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    raise ValueError(
        "`margin` must be finite numbers, by how much chosen is better. "
        f"Received: margin={value!r} in pair {i}"
    )


def _join(prompt, completion):
    """Returns head, tail, and whether it is a conversation."""
    if is_chat(completion):
        turns = [*prompt, *completion] if is_chat(prompt) else completion
        head, tail = split_answer(turns)
        text = prompt if isinstance(prompt, str) else ""
        return text + head, tail, True
    if is_chat(prompt):
        return render_chat(prompt), completion, True
    return prompt, completion, False
