"""Whatever holds prompts, as a dict of lists: one entry a prompt."""

import numbers

import numpy as np

from keras_bond.data.chat import is_chat
from keras_bond.data.chat import render_chat
from keras_bond.rewards.samples import TURNS

PROMPT_NAMES = ("prompts", "prompt")


def to_columns(data):
    """Reads one batch or one whole in-memory data set.

    Args:
        data: str list, array of str, or dict of columns with `"prompts"` (or
            `"prompt"`, as TRL names it), or with `"token_ids"` and optionally
            `"padding_mask"` for prompts that are tokenised already. A prompt
            may be a conversation, see `render_chat`. Other columns are kept
            for the reward.

    Returns:
        dict of lists of equal length, holding `"prompts"` or `"token_ids"`;
        and, of conversations, the turns under `TURNS`.

    Raises:
        TypeError: if prompts are not strings.
        ValueError: if there are none, a column is missing, or lengths differ.
    """
    if not isinstance(data, dict):
        data = {"prompts": data}
    columns = {name: to_list(name, column) for name, column in data.items()}
    columns = _name_prompts(columns)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            "All columns must have one entry for each prompt. "
            f"Received: columns of lengths {lengths}"
        )
    if "token_ids" in columns:
        return _strip_padding(columns)
    return _check_strings(_render(columns))


def _render(columns):
    prompts = columns["prompts"]
    if not prompts or not all(is_chat(prompt) for prompt in prompts):
        return columns
    texts = [render_chat(prompt) for prompt in prompts]
    return {**columns, "prompts": texts, TURNS: prompts}


def _check_strings(columns):
    for i, prompt in enumerate(columns["prompts"]):
        if not isinstance(prompt, str):
            raise TypeError(
                "Prompts must be strings, all of them conversations (lists of "
                "dicts with `role` and `content`), or token ids in a dict with "
                f'"token_ids". Received: {prompt!r} of type '
                f"{type(prompt).__name__} as prompt {i}"
            )
    return columns


def to_list(name, column):
    """Turns a column of any kind into a list; bytes become str.

    Raises:
        TypeError: if it is one value, or nothing that holds values.
    """
    if isinstance(column, (str, bytes)):
        raise TypeError(
            f"`{name}` must be a list, with one entry for each prompt: "
            f"[{column!r}]. Received: {column!r}"
        )
    if hasattr(column, "numpy"):
        column = column.numpy()
    if hasattr(column, "__array__"):
        column = np.asarray(column)
        if column.ndim == 0:
            raise TypeError(
                f"`{name}` must have a batch axis: call `.batch(batch_size)` "
                f"on the data set. Received: {column!r}"
            )
        column = list(column) if column.ndim > 1 else column.tolist()
    if not isinstance(column, (list, tuple)):
        raise TypeError(
            "Prompts must be a list or array of strings, a dict of columns, "
            "a tf.data or grain data set, or an iterable of batches. "
            f"Received: {column!r} of type {type(column).__name__}"
        )
    return [as_text(value) for value in column]


def as_text(value):
    """Decodes bytes, as TensorFlow has strings; leaves all else as it is.

    Raises:
        ValueError: if they are no UTF-8.
    """
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Text must be UTF-8. Received: {value[:80]!r}, {error}"
        ) from None


def _name_prompts(columns):
    if "token_ids" in columns:
        return columns
    for name in PROMPT_NAMES:
        if name in columns:
            prompts = columns.pop(name)
            return {"prompts": prompts, **columns}
    raise ValueError(
        'A dict of columns must have "prompts" (strings) or "token_ids". '
        f"Received: columns {sorted(columns)}"
    )


def _strip_padding(columns):
    """Replaces padded rows of token ids by lists of the real ones."""
    rows = [_token_ids(row, i) for i, row in enumerate(columns["token_ids"])]
    masks = columns.pop("padding_mask", [[True] * len(row) for row in rows])
    stripped = []
    for i, (row, mask) in enumerate(zip(rows, masks)):
        mask = np.asarray(mask, bool)
        length = int(mask.sum())
        if mask.shape != (len(row),) or not mask[:length].all():
            raise ValueError(
                "Tokenised prompts must be padded on the right, with one entry "
                "of `padding_mask` for each token. Received: padding_mask="
                f"{mask.astype(int).tolist()} for the {len(row)} tokens of "
                f"prompt {i}"
            )
        stripped.append(row[:length])
    return {**columns, "token_ids": stripped}


def _token_ids(row, i):
    ids = row.tolist() if hasattr(row, "tolist") else row
    whole = isinstance(ids, (list, tuple)) and all(
        isinstance(token_id, numbers.Integral) for token_id in ids
    )
    if not whole:
        raise TypeError(
            "`token_ids` must hold a list of integers for each prompt. "
            f"Received: token_ids[{i}]={row!r}"
        )
    return [int(token_id) for token_id in ids]
