"""Completions that one can read while training goes on."""

import json
import os
import shutil

import keras
import numpy as np

from keras_bond import backend
from keras_bond.arguments import check_count
from keras_bond.callbacks.checks import check_draws
from keras_bond.callbacks.checks import num_updates

COLUMNS = ("prompt", "policy", "reward", "anchor", "its reward", "quantile")
NUMBER_WIDTH = 10


class CompletionsLog(keras.callbacks.Callback):
    """Shows what policy and anchor answer to some prompts, and its rewards.

    Numbers can rise while answers get worse: look at them. The prompts should
    be held out from training. Draws depend on the model's seed alone, so that
    from one table to the next only the weights differ; training is not
    disturbed.

    Args:
        prompts: list of str, or a dict of columns as in `fit`: few of them.
        every: int, training steps from one table to the next, or `None` for
            one after each epoch. The start is shown in any case. Defaults to
            `None`.
        path: file to which a line of JSON is appended for each prompt and
            table, what `python -m keras_bond report` reads; or `None`.
        num_anchor_samples: int. Completions of the anchor a prompt that make
            the quantile: the share of them with a lower reward than the
            policy's, ties counting one half. The one that is shown is another,
            drawn with the random numbers of the policy's, so that it differs
            by the weights alone. Defaults to 4.
        verbose: 0 or 1. Whether to print tables. Defaults to 1.

    Raises:
        ValueError: if a number is below 1, or the model is no `keras_bond`
            trainer.

    Example:

    ```python
    log = keras_bond.callbacks.CompletionsLog(
        held_out[:4], path="run/completions.jsonl"
    )
    bond.fit(prompts, callbacks=[log, keras.callbacks.CSVLogger("run/log.csv")])
    ```
    """

    def __init__(
        self, prompts, every=None, path=None, num_anchor_samples=4, verbose=1
    ):
        super().__init__()
        if every is not None:
            check_count("every", every, 1)
        check_count("num_anchor_samples", num_anchor_samples, 1)
        self.prompts = prompts
        self.every = every
        self.path = path
        self.num_anchor_samples = num_anchor_samples
        self.verbose = verbose

    def on_train_begin(self, logs=None):
        check_draws(self, self.model)
        self._log()

    def on_train_batch_end(self, batch, logs=None):
        if self.every is not None and (batch + 1) % self.every == 0:
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()
            self._log()

    def on_epoch_end(self, epoch, logs=None):
        if self.every is None:
            self._log()

    def _log(self):
        records = self._records()
        if backend.devices.process_index() > 0:
            return
        if self.path is not None:
            self._append(records)
        if self.verbose:
            print("\n" + table(records))

    def _records(self):
        mine, rewards = self.model.draw_scored(self.prompts)
        theirs, others = self.model.draw_scored(
            self.prompts, 1 + self.num_anchor_samples, weights="anchor"
        )
        below = np.mean(others[:, 1:] < rewards, axis=1)
        level = np.mean(others[:, 1:] == rewards, axis=1)
        step = num_updates(self.model)
        first = slice(None, None, 1 + self.num_anchor_samples)
        columns = {
            "prompt": mine.prompts,
            "policy": mine.completions,
            "reward": rewards[:, 0].tolist(),
            "anchor": theirs.completions[first],
            "its reward": others[:, 0].tolist(),
            "quantile": (below + 0.5 * level).tolist(),
        }
        rows = zip(*columns.values())
        return [{"step": step, **dict(zip(columns, row))} for row in rows]

    def _append(self, records):
        folder = os.path.dirname(os.fspath(self.path))
        if folder:
            os.makedirs(folder, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def table(records, width=None):
    """Lays out records for a terminal, long texts cut.

    Args:
        records: list of dict, of one step.
        width: int, or `None` for that of the terminal.

    Returns:
        str.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    texts = [c for c in COLUMNS if isinstance(records[0][c], str)]
    rest = width - (NUMBER_WIDTH + 1) * (len(COLUMNS) - len(texts))
    text_width = max(12, rest // max(1, len(texts)) - 1)

    def cell(value, name):
        size = text_width if name in texts else NUMBER_WIDTH
        text = value if isinstance(value, str) else f"{value:.3g}"
        text = " ".join(text.split())
        text = text if len(text) <= size else text[: size - 1] + "…"
        return text.ljust(size) if name in texts else text.rjust(size)

    lines = [" ".join(cell(name, name) for name in COLUMNS)]
    lines += [" ".join(cell(r[n], n) for n in COLUMNS) for r in records]
    return "\n".join([f"Step {records[0]['step']}", *lines])
