"""Rows of files, data sets and tables, as a dict of columns."""

import json
import os
import sys

import keras

from keras_bond.data.table import PROMPT_NAMES
from keras_bond.data.table import as_text
from keras_bond.data.table import to_list
from keras_bond.rewards.columns import check_columns

# Attributes of a tf.data, Hugging Face or tfds data set that no column has.
SIGNS_OF_DATA_SETS = ("element_spec", "column_names", "dataset_info")


def read_rows(data):
    """Reads data of single rows as columns; returns all other data unchanged.

    Args:
        data: path of a JSONL file (`.jsonl`), a list of dicts, a data set of
            Hugging Face, a `tfds.data_source` or another sequence of dicts,
            such as a grain `MapDataset` before `batch`.

    Returns:
        dict of lists, or `data`.

    Raises:
        ValueError: if the rows differ in their columns or never end, or `data`
            is a dict of splits.
    """
    if is_path(data):
        return _transpose(read_jsonl(data))
    if isinstance(data, dict):
        _check_no_splits(data)
        return data
    if hasattr(data, "column_names") and hasattr(data, "__getitem__"):
        return {name: list(data[name]) for name in data.column_names}
    if _holds_rows(data):
        # What grain repeats has no other length.
        _check_ends(len(data) == sys.maxsize)
        return _transpose([data[i] for i in range(len(data))])
    return data


def is_path(data):
    """Whether `data` names a JSONL file."""
    return isinstance(data, (str, os.PathLike)) and os.fspath(data).endswith(
        ".jsonl"
    )


def read_jsonl(path):
    """Reads a file with one JSON object per line, skipping empty lines.

    Args:
        path: str or path.

    Returns:
        list of dict.

    Raises:
        ValueError: naming the line that is not a JSON object.
    """
    rows = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                rows.append(_parse(line, path, number))
    return rows


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
        ValueError: if a column does not exist or has a reserved name, the data
            are empty or endless, or not exactly one of `prompt` and `template`
            is given.

    Example:

    ```python
    import tensorflow_datasets as tfds

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
    table = _read_all(data)
    count = len(next(iter(table.values()), []))
    if count == 0:
        raise ValueError(
            "`data` must have at least one row. Received: no rows, columns "
            f"{sorted(table)}"
        )
    if columns is None:
        taken = (prompt, *PROMPT_NAMES)
        columns = [name for name in table if name not in taken]
    check_columns(columns)
    kept = {name: _column(table, name) for name in columns}
    if prompt is not None:
        return {"prompts": _column(table, prompt), **kept}
    rows = [{k: v[i] for k, v in table.items()} for i in range(count)]
    return {"prompts": [_fill(template, row) for row in rows], **kept}


def _read_all(data):
    data = read_rows(data)
    if isinstance(data, dict):
        return {name: to_list(name, column) for name, column in data.items()}
    if isinstance(data, keras.utils.PyDataset):
        data = [data[i] for i in range(data.num_batches)]
    if not hasattr(data, "__iter__") or isinstance(data, (str, bytes)):
        raise TypeError(
            "`data` must be a data set of dicts, a dict of columns, or the "
            f"path of a .jsonl file. Received: {data!r}"
        )
    if hasattr(data, "cardinality"):
        _check_ends(int(data.cardinality()) == -1)
    table = {}
    for element in data:
        for name, values in _as_batch(element).items():
            table.setdefault(name, []).extend(values)
    return table


def _check_ends(endless):
    if endless:
        raise ValueError(
            "`data` must end, because all of it is read: remove `.repeat()` "
            "and set `epochs`. Received: an endless data set"
        )


def _as_batch(element):
    """The columns of a batch, or of one row as a batch of one."""
    if not isinstance(element, dict):
        raise TypeError(
            "`data` must consist of dicts, with a name for each column: call "
            "`tfds.load` without `as_supervised`. Received: "
            f"{element!r} of type {type(element).__name__}"
        )
    if _is_row(element):
        return {name: [_plain(value)] for name, value in element.items()}
    return {name: to_list(name, value) for name, value in element.items()}


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


def _plain(value):
    """A value of one row without arrays and bytes."""
    value = value.numpy() if hasattr(value, "numpy") else value
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return as_text(value)


def _column(table, name):
    if name not in table:
        raise ValueError(
            "`prompt`, `template` and `columns` must name columns of the data. "
            f"Received: {name!r}, columns {sorted(table)}"
        )
    return table[name]


def _fill(template, row):
    try:
        return template.format_map(row)
    except KeyError as error:
        _column(row, error.args[0])
        raise
    except ValueError as error:
        raise ValueError(
            "`template` must be a text with columns in braces, and with {{ or "
            f"}}}} for a brace. Received: template={template!r}, {error}"
        ) from None


def _parse(line, path, number):
    try:
        row = json.loads(line.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            "A .jsonl file must have one JSON object per line. Received: line "
            f"{number} of {path}, {error}"
        ) from None
    if not isinstance(row, dict):
        raise ValueError(
            "A .jsonl file must have one JSON object per line, such as "
            f'{{"prompt": "..."}}. Received: line {number} of {path}, {row!r}'
        )
    return row


def _transpose(rows):
    names = list(rows[0]) if rows else ["prompts"]
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise TypeError(
                "All rows must be dicts, with a value for each column. "
                f"Received: {row!r} of type {type(row).__name__} as row {i}"
            )
        if set(row) != set(names):
            raise ValueError(
                "All rows must have the same columns. Received: "
                f"{sorted(row)} in row {i}, {sorted(names)} in row 0"
            )
    return {name: [_plain(row[name]) for row in rows] for name in names}


def _holds_rows(data):
    if isinstance(data, keras.utils.PyDataset) or hasattr(data, "shape"):
        return False
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        return False
    if isinstance(data, (str, bytes)) or len(data) == 0:
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
