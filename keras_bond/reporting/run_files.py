"""Reads what callbacks wrote about a run."""

import csv
import json
import math
import pathlib
import typing

LOG, COMPLETIONS = "log.csv", "completions.jsonl"
BEST_OF_N = "best_of_n.json"


class Run(typing.NamedTuple):
    """What is known of a run.

    Attributes:
        numbers: dict from each logged name to a list of float by epoch.
        best_of_n: dict with `frontier` and `points`, what
            `keras_bond.evaluation.plot_best_of_n` draws; or `None`.
        completions: list of dict.
    """

    numbers: dict
    best_of_n: dict | None
    completions: list


def read_run(folder):
    """Reads what is known of a run.

    Args:
        folder: path of the folder with `log.csv`, written by
            `keras.callbacks.CSVLogger`, `best_of_n.json`, written by
            `keras_bond.callbacks.BestOfNReport`, and `completions.jsonl`,
            written by `keras_bond.callbacks.CompletionsLog`; some may be
            missing.

    Returns:
        `Run`.

    Raises:
        FileNotFoundError: if none of the files is there.
        ValueError: if a file cannot be read as what its name says.
    """
    folder = pathlib.Path(folder)
    log, completions = folder / LOG, folder / COMPLETIONS
    best_of_n = folder / BEST_OF_N
    if not any(path.exists() for path in (log, completions, best_of_n)):
        raise FileNotFoundError(
            f"A run's folder must hold `{LOG}`, `{BEST_OF_N}` or "
            f"`{COMPLETIONS}`: train with "
            f'keras.callbacks.CSVLogger("{folder}/{LOG}") or '
            "keras_bond.callbacks.CompletionsLog(prompts, "
            f'path="{folder}/{COMPLETIONS}"). Received: {folder}'
        )
    return Run(
        _read_numbers(log) if log.exists() else {},
        _read_best_of_n(best_of_n) if best_of_n.exists() else None,
        _read_completions(completions) if completions.exists() else [],
    )


def _read_numbers(path):
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in (rows[0] if rows else []) if name]
        return {name: [_number(row[name]) for row in rows] for name in names}
    except (TypeError, ValueError, csv.Error) as error:
        raise ValueError(
            f"`{LOG}` must hold numbers by epoch, as "
            f"`keras.callbacks.CSVLogger` writes them. Received: {path}, "
            f"{error}"
        ) from error


def _number(text):
    # What CSVLogger writes for an epoch without validation.
    return math.nan if text in ("", "NA") else float(text)


def _read_best_of_n(path):
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"frontier": found["frontier"], "points": found["points"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`{BEST_OF_N}` must hold what `keras_bond.callbacks.BestOfNReport`"
            f" writes. Received: {path}, {type(error).__name__}: {error}"
        ) from error


def _read_completions(path):
    lines = path.read_bytes().splitlines()
    records = []
    for i, line in enumerate(lines):
        try:
            record = json.loads(line.decode("utf-8"))
            records.append({**record, "step": int(record["step"])})
        except (KeyError, TypeError, ValueError) as error:
            if i == len(lines) - 1:
                # A run that was killed while it wrote.
                break
            raise ValueError(
                f"`{COMPLETIONS}` must hold a line of JSON with a `step` for "
                "each completion, as `keras_bond.callbacks.CompletionsLog` "
                f"writes them. Received: {path}, line {i + 1}: {_shown(line)!r}"
            ) from error
    return records


def _shown(line):
    return line[:80].decode("utf-8", errors="replace")
