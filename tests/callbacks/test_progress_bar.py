"""What the progress bar shows."""

import re
import sys

import keras
import pytest

from keras_bond.callbacks import ProgressBar
from keras_bond.callbacks.progress_bar import with_progress_bar


def test_bar_of_the_user_of_keras_and_the_default(capsys):
    shown = []
    for callbacks in (
        ProgressBar(["entropy"]),
        [keras.callbacks.ProgbarLogger()],
        None,
    ):
        bars = [
            callback
            for callback in with_progress_bar(callbacks, "auto")
            if isinstance(callback, keras.callbacks.ProgbarLogger)
        ]
        assert len(bars) == 1
        bars[0].set_params({"verbose": 1, "epochs": 1, "steps": 1})
        bars[0].on_epoch_begin(0)
        logs = {"reward": 1.0, "entropy": 2.0, "train/skipped_steps": 0}
        bars[0].on_train_batch_end(0, logs)
        bars[0].on_epoch_end(0, {**logs, "val_entropy": 3.0})
        shown.append(capsys.readouterr().out)
    own, stock, default = shown
    assert "entropy: 2" in own and "val_entropy: 3" in own
    assert "reward" not in own
    assert all(name in stock for name in logs)
    assert "reward: 1" in default and "entropy" not in default
    assert "skipped" not in default


def test_skipped_steps_are_shown_once_there_are_some(capsys):
    bar = ProgressBar()
    bar.set_params({"verbose": 1, "epochs": 1, "steps": 1})
    bar.on_epoch_begin(0)
    bar.on_train_batch_end(0, {"reward": 1.0, "train/skipped_steps": 2})
    assert "train/skipped_steps: 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "columns, expected",
    [
        (80, ["reward", "kl_ref"]),
        (100, ["reward", "kl_ref", "kl"]),
        (120, ["reward", "kl_ref", "bond/win_rate", "kl"]),
    ],
)
def test_a_line_fits_into_the_terminal(columns, expected, capsys, monkeypatch):
    """Pins: a line for each step, cut off before the reward."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    logs = {"bond/win_rate": 0.6, "kl": 0.1, "kl_ref": 0.5, "reward": 0.8}
    bar = ProgressBar()
    bar.set_params({"verbose": 1, "epochs": 1, "steps": 100})
    bar.on_epoch_begin(0)
    bar.progbar._start -= 12.0
    for batch in range(3):
        bar.on_train_batch_end(batch, logs)
    written = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    line = re.split(r"[\r\n\x08]+", written.rstrip())[-1]
    assert len(line) < columns
    assert re.findall(r"- ([\w/]+):", line) == expected
    bar.on_epoch_end(0, logs)
    written = capsys.readouterr().out
    assert all(name in written for name in logs)


def test_one_name_is_no_list():
    """Pins: "kl" and "ref" shown for "kl_ref"."""
    with pytest.raises(TypeError, match=r"`names` must be logged.*\['kl', 1"):
        ProgressBar(["kl", 1])
    with pytest.raises(TypeError, match="`names` must be a list.*kl_ref"):
        ProgressBar("kl_ref")
