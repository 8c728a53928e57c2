"""Prompts of any kind as one table: text, conversations, token ids, columns."""

import array
import dataclasses
import functools
import itertools
import numbers
import zlib

import numpy as np

from keras_bond.data.origin import MEMORY
from keras_bond.data.origin import Origin
from keras_bond.data.origin import origin_of
from keras_bond.rewards.samples import IMAGES
from keras_bond.rewards.samples import check_columns
from keras_bond.rewards.samples import check_names
from keras_bond.rewards.samples import crc32_of_images
from keras_bond.rewards.scores import to_host
from keras_bond.rewards.scores import to_python
from keras_bond.turns import is_chat

PROMPT_NAMES = ("prompts", "prompt")
# Columns of completions that the data give, and of their rewards, which are an
# ordinary column without them.
COMPLETION_NAMES = ("completions", "completion_ids")
REWARDS = "rewards"


@dataclasses.dataclass(frozen=True)
class PromptTable:
    """Prompts with what belongs to them, one entry for each prompt.

    Attributes:
        prompts: list of str, or `None` where there are token ids only, or
            conversations that are not rendered yet.
        token_ids: list of lists of int, or `None` before tokenizing.
        conversations: list of lists of turns, or `None`.
        columns: dict of lists, the other columns of the data set.
        origin: an `Origin`, by which messages name a prompt.
        given: dict of lists, the completions that the data give, a list for
            each prompt; empty if there are none. `GivenReader` turns them into
            arrays.
    """

    prompts: list | None = None
    token_ids: list | None = None
    conversations: list | None = None
    columns: dict = dataclasses.field(default_factory=dict)
    origin: Origin = MEMORY
    given: dict = dataclasses.field(default_factory=dict)

    def __len__(self):
        fields = (self.prompts, self.token_ids, self.conversations)
        return len(next(field for field in fields if field is not None))

    @property
    def num_given(self):
        """int. Completions that are given for each prompt, once read."""
        return next((len(c[0]) for c in self.given.values() if len(c)), 0)

    @functools.cached_property
    def fingerprint(self):
        """int. Differs for other token ids, images or given completions."""
        crc = zlib.crc32(array.array("i", map(len, self.token_ids)))
        for ids in self.token_ids:
            crc = zlib.crc32(array.array("i", ids), crc)
        for images in self.columns.get(IMAGES, []):
            crc = crc32_of_images(images, crc)
        for array_of_prompt in itertools.chain(*self.given.values()):
            crc = zlib.crc32(array_of_prompt.tobytes(), crc)
        return crc % 2**31

    def take(self, indices):
        """Returns a `PromptTable` of the prompts of the given indices."""
        return self._map(lambda column: [column[i] for i in indices])

    def to_columns(self):
        """Returns the dict of lists that `to_table` reads as this table."""
        named = {
            "prompts": self.conversations or self.prompts,
            "token_ids": self.token_ids,
        }
        kept = {k: v for k, v in named.items() if v is not None}
        return {**kept, **self.columns}

    def repeat(self, times):
        """Returns a `PromptTable` with every entry `times` times in a row."""
        return self.take([i for i in range(len(self)) for _ in range(times)])

    def names(self):
        """Sorted list of str. The names of what the table holds."""
        fields = ("prompts", "token_ids", "conversations")
        kept = [name for name in fields if getattr(self, name) is not None]
        return sorted([*kept, *self.columns, *self.given])

    def _map(self, function):
        def of(column):
            return None if column is None else function(column)

        return PromptTable(
            of(self.prompts),
            of(self.token_ids),
            of(self.conversations),
            {name: of(column) for name, column in self.columns.items()},
            given={name: of(column) for name, column in self.given.items()},
        )


def concatenate(tables):
    """Joins `PromptTable`s with the same columns.

    Raises:
        ValueError: if one has a column that another lacks.
    """
    tables = [table for table in tables if len(table)]
    names = [table.names() for table in tables]
    if any(these != names[0] for these in names):
        other = next(these for these in names if these != names[0])
        raise ValueError(
            "All batches must have the same columns. "
            f"Received: {other} in one batch, {names[0]} in the first"
        )

    def join(columns):
        columns = list(columns)
        if not columns or columns[0] is None:
            return None
        return [value for column in columns for value in column]

    columns = tables[0].columns if tables else {}
    given = tables[0].given if tables else {}
    return PromptTable(
        join(table.prompts for table in tables) if tables else [],
        join(table.token_ids for table in tables),
        join(table.conversations for table in tables),
        {k: join(table.columns[k] for table in tables) for k in columns},
        given={k: join(table.given[k] for table in tables) for k in given},
    )


def to_table(data):
    """Reads one batch or one whole in-memory data set.

    Args:
        data: list of str, array of str, or dict of columns with `"prompts"`
            (or `"prompt"`, as TRL names it), or with `"token_ids"` and
            optionally `"padding_mask"` for prompts that are tokenized already.
            A prompt may be a conversation, a list of turns. Completions may be
            given in columns, see `GivenReader`. Other columns are kept for the
            reward.

    Returns:
        a `PromptTable` with `prompts` or `conversations`, or with `token_ids`
        where the data have them.

    Raises:
        TypeError: if prompts are not strings.
        ValueError: if there are none, a column is missing, lengths differ, or
            a column has a name that is reserved, see `check_columns`.
    """
    if not isinstance(data, dict):
        data = {"prompts": data}
    origin = origin_of(data)
    columns = {name: to_list(name, column) for name, column in data.items()}
    columns = _name_prompts(columns)
    given = _pop_given(columns)
    check_columns(set(columns) - {"prompts"})
    check_same_length({**columns, **given})
    if "token_ids" in columns:
        token_ids = _strip_padding(
            columns.pop("token_ids"), columns.pop("padding_mask", None), origin
        )
        prompts = columns.pop("prompts", None)
        return PromptTable(prompts, token_ids, None, columns, origin, given)
    prompts = columns.pop("prompts")
    if prompts and all(is_chat(prompt) for prompt in prompts):
        return PromptTable(None, None, prompts, columns, origin, given)
    _check_strings(prompts, origin)
    return PromptTable(prompts, None, None, columns, origin, given)


def check_same_length(columns):
    """Raises an error if columns have different numbers of entries.

    Raises:
        ValueError: naming the length of each column.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            "All columns must have one entry for each prompt. "
            f"Received: columns of lengths {lengths}"
        )


def _check_strings(prompts, origin):
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(
                "Prompts must be strings, all of them conversations (lists of "
                "dicts with `role` and `content`), or token ids in a dict with "
                f'"token_ids". Received: {prompt!r} of type '
                f"{type(prompt).__name__} as {origin.name(i)}"
            )
        try:
            check_unicode(prompt)
        except ValueError as error:
            raise origin.error(error, i) from None


def check_unicode(text):
    """Raises an error if a text cannot be encoded.

    Python's strings, unlike tokenizers, accept half of a surrogate pair, such
    as JSON's escape "\\ud83d" without the second half of its emoji.

    Raises:
        ValueError: naming the half pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Text must be valid Unicode. Received: {error}"
        ) from None


def to_list(name, column):
    """Turns a column into a list; bytes become str, masked entries None.

    Raises:
        TypeError: if it is a single value, or does not hold values.
    """
    if isinstance(column, (str, bytes)):
        raise TypeError(
            f"`{name}` must be a list, with one entry for each prompt: "
            f"[{column!r}]. Received: {column!r}"
        )
    for method in ("to_pylist", "to_list"):
        # Of pyarrow, of pandas and polars.
        if hasattr(column, method):
            column = getattr(column, method)()
    column = to_host(column)
    if hasattr(column, "__array__"):
        # Keeps the mask of a masked array.
        column = np.asanyarray(column)
        if column.ndim == 0:
            raise TypeError(
                f"`{name}` must have a batch axis: call `.batch(batch_size)` "
                f"on the data set. Received: {column!r}"
            )
        is_whole = column.ndim > 1 and not np.ma.is_masked(column)
        column = list(column) if is_whole else to_python(column)
    if not isinstance(column, (list, tuple)):
        raise TypeError(
            "Prompts must be a list or array of strings, a dict of columns, "
            "a tf.data or grain data set, or an iterable of batches. "
            f"Received: {column!r} of type {type(column).__name__}"
        )
    return [
        None if value is np.ma.masked else as_text(value) for value in column
    ]


def as_text(value):
    """Decodes bytes, TensorFlow's kind of strings; returns others unchanged.

    Raises:
        ValueError: if they are not UTF-8.
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
    check_names(columns)
    for name in PROMPT_NAMES:
        if name in columns:
            prompts = columns.pop(name)
            return {"prompts": prompts, **columns}
    if "token_ids" in columns:
        return columns
    raise ValueError(
        'A dict of columns must have "prompts" (strings) or "token_ids". '
        f"Received: columns {sorted(columns)}"
    )


def _pop_given(columns):
    """Removes completions that are given, and their rewards, from columns."""
    names = [name for name in COMPLETION_NAMES if name in columns]
    if names and REWARDS in columns:
        names.append(REWARDS)
    return {name: columns.pop(name) for name in names}


def _strip_padding(padded, masks, origin):
    """Turns padded token ids into lists of the real ones."""
    padded = [
        as_token_ids("token_ids", ids, origin.name(i))
        for i, ids in enumerate(padded)
    ]
    if masks is None:
        return padded
    stripped = []
    for i, (ids, mask) in enumerate(zip(padded, masks)):
        length = _count_kept(mask)
        if length is None or np.shape(mask) != (len(ids),):
            raise ValueError(
                "Tokenized prompts must be padded on the right, with one 0 or "
                "1 of `padding_mask` for each token. Received: padding_mask="
                f"{mask!r} for the {len(ids)} tokens of {origin.name(i)}"
            )
        stripped.append(ids[:length])
    return stripped


def _count_kept(mask):
    """Number of ones in a mask, `None` if it is not ones before zeros."""
    values = np.asanyarray(mask, dtype=object).tolist()
    if not isinstance(values, list) or any(v not in (0, 1) for v in values):
        return None
    count = sum(values)
    return count if all(values[:count]) else None


def as_token_ids(column, values, name):
    """Turns token ids into a list of int.

    Args:
        column: str. The column that holds them, for the message.
        values: list, tuple or array of integers.
        name: str. What they are the ids of, for the message.

    Raises:
        TypeError: if they are not integers.
    """
    ids = values.tolist() if hasattr(values, "tolist") else values
    whole = isinstance(ids, (list, tuple)) and all(
        isinstance(token_id, numbers.Integral)
        and not isinstance(token_id, bool)
        for token_id in ids
    )
    if not whole:
        raise TypeError(
            f"`{column}` must hold a list of integers for each prompt or "
            f"completion. Received: {column}={values!r} of {name}"
        )
    return [int(token_id) for token_id in ids]
