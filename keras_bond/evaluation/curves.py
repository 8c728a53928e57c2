"""The logged numbers of a run, as a figure."""

import csv
import math
import os

import keras

from keras_bond.evaluation import plots

# What is drawn together, as far as it was logged: title, unit, names. Each
# name stands for its validation too.
CURVES = (
    (
        "Reward",
        "reward",
        ("reward", "anchor/reward", "held_out/reward", "held_out/gold_reward"),
    ),
    ("KL", "nats per sequence", ("kl", "kl_ref", "held_out/kl")),
    (
        "Win rate",
        "share",
        (
            "bond/win_rate",
            "held_out/win_rate",
            "held_out/agreement",
            "bond/penalized_fraction",
            "accuracy",
        ),
    ),
    ("Rank correlation", "", ("bond/rank_correlation",)),
    ("Effective N", "N", ("held_out/effective_n",)),
    (
        "Losses",
        "",
        (
            "loss",
            "forward_kl_loss",
            "backward_kl_loss",
            "kl_loss",
            "quantile_loss",
            "policy_loss",
            "sft_loss",
            "contrast_loss",
        ),
    ),
    ("Completion length", "tokens", ("completions/mean_length",)),
    (
        "Warning signs",
        "share",
        (
            "completions/clipped_ratio",
            "frac_reward_zero_std",
            "frac_prompts_unscored",
            "train/updated_fraction",
        ),
    ),
    ("Entropy", "nats per token", ("entropy",)),
    (
        "Drawing against learning",
        "nats per token",
        ("sampling/log_prob_difference",),
    ),
    ("Skipped steps", "steps", ("train/skipped_steps",)),
    ("Gradient", "norm", ("grad_norm",)),
    ("Learning rate", "", ("learning_rate",)),
    ("Step time", "seconds", ("step_time",)),
)
# Where docs/logged_numbers.md says to look closer: above these values, or where
# a win rate stays at 1/2. They are drawn if the curves come near.
LIMITS = {
    "KL": (1.0,),
    "Win rate": (1 / 2, 2 / 3),
    "Drawing against learning": (0.01,),
    "Warning signs": (0.1,),
}


def plot_run(run):
    """Draws the curves of a run: reward, KL, win rate, losses, length, ...

    Numbers of the validation are dashed. Dotted lines are where the table of
    logged numbers says to look closer. What was not logged is left out.

    Args:
        run: the `keras.callbacks.History` that `fit` returns, or the path of a
            file that `keras.callbacks.CSVLogger` wrote.

    Returns:
        `matplotlib.figure.Figure`; `figure.savefig(path)` writes it.

    Raises:
        ImportError: if matplotlib is missing (extra `plots`).
        TypeError: if `run` is neither a history nor a path.
        ValueError: if the file does not hold numbers by epoch, or none of the
            numbers that are drawn was logged.

    Example:

    ```python
    history = bond.fit(prompts, epochs=10)
    keras_bond.evaluation.plot_run(history).savefig("run.png")
    ```
    """
    epochs, logs = _read(run)
    panels = [(*panel[:2], _curves(panel[2], logs)) for panel in CURVES]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        raise ValueError(
            "`run` must hold numbers that a trainer of `keras_bond` logs, at "
            f"least one epoch of them. Received: run={run!r} with "
            f"{sorted(logs)}"
        )
    rows = math.ceil(len(panels) / 2)
    figure = plots.new_figure(figsize=(11, 3.2 * rows), layout="constrained")
    for i, (title, unit, curves) in enumerate(panels):
        axes = figure.add_subplot(rows, 2, i + 1)
        for name, values in curves.items():
            style = ".--" if name.startswith("val_") else ".-"
            at = _epochs_of(values, epochs)
            axes.plot(at, values, style, label=name)
        low, high = axes.get_ylim()
        for limit in LIMITS.get(title, ()):
            if low - (high - low) <= limit <= high + (high - low):
                axes.axhline(limit, color="grey", linestyle=":", linewidth=1)
        axes.set(title=title, ylabel=unit, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        plots.finish(axes)
    return figure


def _curves(names, logs):
    """The curves of a panel that have a finite value."""
    names = [both for name in names for both in (name, f"val_{name}")]
    return {
        name: logs[name]
        for name in names
        if any(math.isfinite(value) for value in logs.get(name, ()))
    }


def _epochs_of(values, epochs):
    """With `validation_freq` there are fewer values than epochs."""
    every = max(1, len(epochs) // len(values))
    return epochs[every - 1 :: every][: len(values)]


def _read(run):
    """Epochs, counted from 1, and a dict of lists of float."""
    if isinstance(run, keras.callbacks.History):
        return [epoch + 1 for epoch in run.epoch], run.history
    if not isinstance(run, (str, os.PathLike)):
        raise TypeError(
            "`run` must be a `keras.callbacks.History` or the path of a file "
            "that `keras.callbacks.CSVLogger` wrote. "
            f"Received: run={run!r} of type {type(run).__name__}"
        )
    try:
        with open(run, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in (rows[0] if rows else ()) if name]
        logs = {name: [_number(row[name]) for row in rows] for name in names}
        return [int(epoch) + 1 for epoch in logs.pop("epoch")], logs
    except (
        KeyError,
        OverflowError,
        TypeError,
        ValueError,
        csv.Error,
    ) as error:
        raise ValueError(
            "`run` must hold numbers by epoch, as `keras.callbacks.CSVLogger` "
            f"writes them. Received: {os.fspath(run)}, {error}"
        ) from error


def _number(text):
    # CSVLogger writes "NA" for the validation of an epoch without one.
    return math.nan if text in ("", "NA") else float(text)
