"""Figures of a run: from a history, from a CSV file, from broken ones."""

import sys

import keras
import pytest

from keras_bond.evaluation import plot_best_of_n
from keras_bond.evaluation import plot_run

LOG = """epoch,reward,kl,bond/win_rate,val_reward,unknown
0,0.5,0.01,0.5,NA,1
1,.75,.2,.6,1,2
"""


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    return path


def curves_of(figure):
    """Points of each curve by its name, by the title of its panel."""
    return {
        axes.get_title(): {
            line.get_label(): list(map(tuple, line.get_xydata().tolist()))
            for line in axes.get_lines()
            if not line.get_label().startswith("_")
        }
        for axes in figure.axes
    }


def test_lines_show_where_to_look_closer(log):
    """Those of a win rate; a KL of 1 is far above the curve."""
    axes = {x.get_title(): x for x in plot_run(log).axes}
    limits = {
        name: [
            line.get_ydata()[0]
            for line in axes[name].get_lines()
            if line.get_linestyle() == ":"
        ]
        for name in ("Win rate", "KL", "Reward")
    }
    assert limits["Win rate"] == [1 / 2, 2 / 3] and limits["Reward"] == []


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_numbers_of_a_file_are_drawn(log, kind):
    """Pins: epochs that count from 0, and a validation that is not there."""
    curves = curves_of(plot_run(kind(log)))
    assert list(curves) == ["Reward", "KL", "Win rate"]
    assert curves["Reward"]["reward"] == [(1, 0.5), (2, 0.75)]
    (first, second) = curves["Reward"]["val_reward"]
    assert first[1] != first[1] and second == (2, 1)
    assert curves["Win rate"] == {"bond/win_rate": [(1, 0.5), (2, 0.6)]}


def test_numbers_of_a_history_are_drawn(tmp_path):
    """With the epochs of a resumed run, and a validation every two epochs."""
    history = keras.callbacks.History()
    history.epoch = [3, 4, 5, 6]
    history.history = {
        "loss": [4.0, 3.0, 2.0, 1.0],
        "val_loss": [3.5, 1.5],
        "completions/mean_length": [5.0] * 4,
        "held_out/effective_n": [1.0, 1.5, float("inf"), 2.0],
        "entropy": [float("nan")] * 4,
    }
    figure = plot_run(history)
    curves = curves_of(figure)
    assert list(curves) == ["Effective N", "Losses", "Completion length"]
    assert curves["Losses"]["loss"] == [(4, 4), (5, 3), (6, 2), (7, 1)]
    assert curves["Losses"]["val_loss"] == [(5, 3.5), (7, 1.5)]
    figure.savefig(tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_named(log):
    log.write_text("epoch,reward\n0,much\n")
    with pytest.raises(ValueError, match="must hold numbers by epoch.*much"):
        plot_run(log)
    log.write_text("epoch,mae\n0,1\n")
    with pytest.raises(ValueError, match="`run` must hold numbers that a tr"):
        plot_run(log)
    log.write_text("step,reward\n0,1\n")
    with pytest.raises(ValueError, match="must hold numbers by epoch.*epoch"):
        plot_run(log)
    with pytest.raises(TypeError, match="`run` must be .* of type dict"):
        plot_run({"reward": [1.0]})
    with pytest.raises(FileNotFoundError):
        plot_run(log.parent / "missing.csv")


def test_matplotlib_is_asked_for_by_name(log, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (lambda: plot_run(log), lambda: plot_best_of_n([], [])):
        with pytest.raises(
            ImportError, match="pip install matplotlib`, .*`plots`"
        ):
            draw()
