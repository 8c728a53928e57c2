"""Reads what callbacks wrote about a run."""

import csv
import json
import math
import pathlib

LOG, COMPLETIONS = "log.csv", "completions.jsonl"


def read_run(folder):
    """Reads a run's numbers and completions.

    Args:
        folder: path of the folder with `log.csv`, written by
            `keras.callbacks.CSVLogger`, and `completions.jsonl`, written by
            `keras_bond.callbacks.CompletionsLog`; either may be missing.

    Returns:
        `(numbers, completions)`: dict from each logged name to a list of float
        by epoch, and a list of dict.

    Raises:
        FileNotFoundError: if neither file is there.
        ValueError: if a file cannot be read as what its name says.
    """
    folder = pathlib.Path(folder)
    log, completions = folder / LOG, folder / COMPLETIONS
    if not log.exists() and not completions.exists():
        raise FileNotFoundError(
            f"A run's folder must hold `{LOG}` or `{COMPLETIONS}`: train with "
            f'keras.callbacks.CSVLogger("{folder}/{LOG}") or '
            "keras_bond.callbacks.CompletionsLog(prompts, "
            f'path="{folder}/{COMPLETIONS}"). Received: {folder}'
        )
    return (
        _read_numbers(log) if log.exists() else {},
        _read_completions(completions) if completions.exists() else [],
    )


def _read_numbers(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else []) if name]
    try:
        return {name: [_number(row[name]) for row in rows] for name in names}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{LOG}` must hold numbers by epoch, as "
            f"`keras.callbacks.CSVLogger` writes them. Received: {path}, "
            f"{error}"
        ) from error


def _number(text):
    # What CSVLogger writes for an epoch without validation.
    return math.nan if text in ("", "NA") else float(text)


def _read_completions(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for i, line in enumerate(lines):
        try:
            record = json.loads(line)
            records.append({**record, "step": int(record["step"])})
        except (KeyError, TypeError, ValueError) as error:
            if i == len(lines) - 1:
                # A run that was killed while it wrote.
                break
            raise ValueError(
                f"`{COMPLETIONS}` must hold a line of JSON with a `step` for "
                "each completion, as `keras_bond.callbacks.CompletionsLog` "
                f"writes them. Received: {path}, line {i + 1}: {line[:80]!r}"
            ) from error
    return records
