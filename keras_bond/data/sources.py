"""Rows of files, data sets and tables, as a dict of columns."""

import math
import os
import string
import sys

import keras

from keras_bond.data.jsonl import is_path
from keras_bond.data.jsonl import numbered_rows
from keras_bond.data.origin import MEMORY
from keras_bond.data.origin import FileColumns
from keras_bond.data.origin import Origin
from keras_bond.data.origin import origin_of
from keras_bond.data.table import COMPLETION_NAMES
from keras_bond.data.table import PROMPT_NAMES
from keras_bond.data.table import as_text
from keras_bond.data.table import check_same_length
from keras_bond.data.table import to_list
from keras_bond.rewards.samples import check_columns
from keras_bond.rewards.scores import to_host
from keras_bond.rewards.scores import to_python
from keras_bond.turns import is_chat

# Attributes of a tf.data, Hugging Face or tfds data set that no column has.
SIGNS_OF_DATA_SETS = ("element_spec", "column_names", "dataset_info")
# Deeper values would exceed Python's recursion limit where they are copied.
MAX_DEPTH = 100


def read_rows(data):
    """Reads data of single rows as columns; returns all other data unchanged.

    Args:
        data: path of a JSONL file (`.jsonl`), a list of dicts, a pandas or
            polars data frame, a pyarrow table, a `datasets.Dataset`, a
            `tfds.data_source` or another sequence of dicts, such as a grain
            `MapDataset` before `batch`.

    Returns:
        dict of lists, or `data`, such as an iterable of rows or batches.

    Raises:
        TypeError: if a row is not a dict.
        ValueError: if the rows differ in their columns, or `data` is a dict of
            splits.
    """
    if is_path(data):
        return _transpose_file(data)
    if isinstance(data, dict):
        _check_no_splits(data)
        return data
    if is_frame(data):
        return _read_frame(data)
    if hasattr(data, "column_names") and hasattr(data, "__len__"):
        return {name: list(data[name]) for name in data.column_names}
    if _holds_rows(data):
        return _transpose([data[i] for i in range(len(data))])
    return data


def batch_of(element):
    """Reads an element of a data set as a batch, one row as a batch of one.

    Args:
        element: dict of columns, data frame, list of rows or of prompts, array
            of prompts; or one row: a dict, a str or a conversation.

    Returns:
        `(batch, is_row)`: a batch that `to_table` reads, and whether it was
        one row.
    """
    if isinstance(element, (str, bytes)) or is_chat(element):
        return {"prompts": [element]}, True
    element = read_rows(element)
    if isinstance(element, dict) and element and _is_row(element):
        return {name: [_plain(v)] for name, v in element.items()}, True
    return element, False


def prompts_from(data, prompt=None, template=None, columns=None):
    """Takes prompts and columns from a data set with column names of its own.

    The data are read into memory once, so leave out columns that the reward
    does not need. `fit`, `evaluate` and `generate` take the result.

    Args:
        data: a `tf.data.Dataset` as `tfds.load` returns it or a
            `tfds.data_source`, a grain or Hugging Face data set, path of a
            JSONL file, list of dicts or dict of columns; batched or not.
        prompt: str. The column of the prompts.
        template: str, instead of `prompt`: the prompt with columns in braces,
            as for `str.format`.
        columns: list of str. The columns to keep for the reward. Defaults to
            all but `prompt`, and `"prompt"` and `"prompts"`.

    Returns:
        dict of lists: `"prompts"`, and the kept columns under their names.

    Raises:
        TypeError: if the data do not consist of rows of columns.
        ValueError: if a column does not exist or has a reserved name, a row
            has no value for `template`, the data are empty or endless, or not
            exactly one of `prompt` and `template` is given.

    Example:

    ```python
    import tensorflow_datasets as tfds  # extra `tfds`

    prompts = keras_bond.data.prompts_from(
        tfds.load("gsm8k", split="train"),
        template="Question: {question}\\nAnswer:",
        columns=["answer"],
    )
    bond.fit(prompts, batch_size=32)
    ```
    """
    if (prompt is None) == (template is None):
        raise ValueError(
            "Exactly one of `prompt`, the name of a column, and `template` "
            f"must be given. Received: prompt={prompt!r}, template={template!r}"
        )
    table = read_all(data)
    origin = origin_of(table)
    count = len(next(iter(table.values()), []))
    if count == 0:
        raise ValueError(
            "`data` must have at least one row. Received: no rows, columns "
            f"{sorted(table)}"
        )
    if columns is None:
        taken = (prompt, *PROMPT_NAMES)
        columns = [name for name in table if name not in taken]
    check_columns(set(columns) - set(COMPLETION_NAMES))
    kept = {name: _column(table, name) for name in columns}
    if prompt is not None:
        prompts = _column(table, prompt)
    else:
        prompts = [_fill(template, table, i, origin) for i in range(count)]
    return FileColumns({"prompts": prompts, **kept}, origin)


def read_all(data):
    """Reads a finite data set of rows or batches into a dict of lists.

    Raises:
        TypeError: if the data do not consist of rows of columns.
        ValueError: if the data are endless, or not all have the same columns.
    """
    data = read_rows(data)
    if isinstance(data, dict):
        columns = {name: to_list(name, data[name]) for name in data}
        check_same_length(columns)
        return FileColumns(columns, origin_of(data))
    if not hasattr(data, "__iter__") or isinstance(data, (str, bytes)):
        raise TypeError(
            "`data` must be a data set of dicts, a dict of columns, or the "
            f"path of a .jsonl file. Received: {data!r}"
        )
    if num_batches(data) == math.inf:
        raise ValueError(
            "`data` must end, because all of it is read: remove `.repeat()` "
            "and set `epochs`. Received: an endless data set"
        )
    table = {}
    for i, element in enumerate(data):
        batch, is_row = batch_of(element)
        if not isinstance(batch, dict):
            raise TypeError(
                "`data` must consist of dicts, with a name for each column: "
                "call `tfds.load` without `as_supervised`. Received: "
                f"{element!r} of type {type(element).__name__}"
            )
        kind = "row" if is_row else "batch"
        _check_same_names(batch, table or batch, i, kind, MEMORY)
        columns = {name: to_list(name, batch[name]) for name in batch}
        check_same_length(columns)
        for name, values in columns.items():
            table.setdefault(name, []).extend(values)
    return table


def num_batches(data):
    """Number of elements of a data set, inf if endless, `None` if unknown."""
    if hasattr(data, "cardinality"):
        known = int(data.cardinality())
        return {-1: math.inf, -2: None}.get(known, known)
    try:
        if isinstance(data, keras.utils.PyDataset):
            length = data.num_batches
            return math.inf if length is None else length
        length = len(data)
    except (TypeError, NotImplementedError):
        return None
    # What grain repeats has the length `sys.maxsize`, divided by batch sizes.
    return math.inf if length > sys.maxsize >> 24 else length


def _is_row(element):
    """One row has single values; a batch has none."""
    return any(
        _is_turns(value)
        # By length, for TensorFlow's shape of a scalar is true.
        or not (
            isinstance(value, (list, tuple)) or len(getattr(value, "shape", ()))
        )
        for value in element.values()
    )


def _is_turns(value):
    return isinstance(value, (list, tuple)) and all(
        isinstance(turn, dict) for turn in value
    )


def plain_column(column, origin=MEMORY):
    """Turns a column into lists, str and numbers, without arrays but images.

    Args:
        column: list, with a value for each row.
        origin: the `Origin` of the rows.

    Raises:
        ValueError: naming the row of a value that is nested too deep.
    """
    values = []
    for i, value in enumerate(column):
        try:
            values.append(_plain(value))
        except ValueError as error:
            raise origin.error(error, i, "row") from None
    return values


def _plain(value, depth=0):
    """A value of one row without bytes, and without arrays but images."""
    if depth > MAX_DEPTH:
        raise ValueError(
            f"Values must be nested at most {MAX_DEPTH} levels deep. "
            "Received: a deeper one"
        )
    value = to_host(value) if hasattr(value, "numpy") else value
    if getattr(value, "ndim", 0) >= 3:
        # As lists, the numbers of an image would take seconds.
        return value
    value = to_python(value) if hasattr(value, "tolist") else value
    if isinstance(value, list):
        return [_plain(entry, depth + 1) for entry in value]
    if isinstance(value, dict):
        return {name: _plain(v, depth + 1) for name, v in value.items()}
    return as_text(value)


def _column(table, name):
    if name not in table:
        raise ValueError(
            "`prompt`, `template` and `columns` must name columns of the data. "
            f"Received: {name!r}, columns {sorted(table)}"
        )
    return table[name]


class _Template(string.Formatter):
    def get_field(self, field_name, args, kwargs):
        value, first = super().get_field(field_name, args, kwargs)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise ValueError(f"{field_name!r} has no value: leave the row out")
        return value, first


def _fill(template, table, i, origin):
    row = {name: column[i] for name, column in table.items()}
    try:
        return _Template().vformat(template, (), row)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, KeyError) and error.args[0] not in row:
            _column(row, error.args[0])
        raise ValueError(
            "`template` must be a text with columns in braces, and with {{ or "
            f"}}}} for a brace. Received: template={template!r}, {error}, in "
            f"{origin.name(i, 'row')}"
        ) from None


def _transpose(rows, origin=MEMORY):
    names = list(rows[0]) if rows else ["prompts"]
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise TypeError(
                "All rows must be dicts, with a value for each column. "
                f"Received: {row!r} of type {type(row).__name__} as "
                f"{origin.name(i, 'row')}"
            )
        _check_same_names(row, names, i, "row", origin)
    return {
        name: plain_column([row[name] for row in rows], origin)
        for name in names
    }


def _check_same_names(row, names, i, kind, origin):
    if set(row) != set(names):
        raise ValueError(
            "All rows must have the same columns. Received: "
            f"{list(row)} in {origin.name(i, kind)}, {list(names)} in "
            f"{origin.name(0, kind)}"
        )


def _transpose_file(path):
    numbered = list(numbered_rows(path))
    origin = Origin(os.fspath(path), [number for number, _ in numbered])
    columns = _transpose([row for _, row in numbered], origin)
    return FileColumns(columns, origin)


def is_frame(data):
    """Whether `data` is a data frame or table; their columns are not."""
    return hasattr(data, "to_pydict") or (
        hasattr(data, "to_dict") and not hasattr(data, "to_list")
    )


def _read_frame(data):
    if hasattr(data, "to_pydict"):
        names, columns = data.column_names, data.to_pydict()
    else:
        names, columns = data.columns, _to_dict(data)
    if len(columns) != len(names):
        raise ValueError(
            "All columns of a table must have names of their own. Received: "
            f"columns {list(names)}"
        )
    return {name: plain_column(column) for name, column in columns.items()}


def _to_dict(frame):
    try:
        return frame.to_dict("list")
    except TypeError:
        # The method of polars has another signature than that of pandas.
        return frame.to_dict(as_series=False)


def _holds_rows(data):
    if isinstance(data, keras.utils.PyDataset) or hasattr(data, "shape"):
        return False
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        return False
    if isinstance(data, (str, bytes)) or num_batches(data) in (0, math.inf):
        return False
    first = data[0]
    return isinstance(first, dict) and (
        isinstance(data, (list, tuple)) or _is_row(first)
    )


def _check_no_splits(data):
    for name, split in data.items():
        if any(hasattr(split, sign) for sign in SIGNS_OF_DATA_SETS):
            raise ValueError(
                "Data must be one split: pass `split=` to `tfds.load` or "
                f"`load_dataset`, or `data[{name!r}]`. Received: a dict of "
                f"splits {sorted(data)}"
            )
