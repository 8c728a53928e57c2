"""Rows of JSONL files."""

import json
import os


def is_path(data):
    """Whether `data` names a JSONL file."""
    return isinstance(data, (str, os.PathLike)) and os.fspath(data).endswith(
        ".jsonl"
    )


def read_jsonl(path):
    """Reads a file with one JSON object per line, skipping empty lines.

    Args:
        path: str or path. The file is UTF-8, with or without a byte order
            mark.

    Returns:
        list of dict.

    Raises:
        ValueError: naming the line that is not a JSON object.
    """
    return [row for _, row in numbered_rows(path)]


def numbered_rows(path):
    """Yields `(line, row)` of each row of a JSONL file, see `read_jsonl`."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig").strip()
                row = json.loads(text) if text else {}
            # `json` raises a plain ValueError for an integer of 4,301 digits.
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    "A .jsonl file must have one JSON object per line. "
                    f"Received: line {number} of {path}, {error}"
                ) from None
            if not isinstance(row, dict):
                raise ValueError(
                    "A .jsonl file must have one JSON object per line, such as "
                    f'{{"prompt": "..."}}. Received: line {number} of {path}, '
                    f"a value of type {type(row).__name__}"
                )
            if text:
                yield number, row
