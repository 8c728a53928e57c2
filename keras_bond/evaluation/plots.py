"""Policies against Best-of-N, as figures."""

import io
import math

from keras_bond.packages import check_installed


def plot_best_of_n(frontier, points):
    """Draws reward against KL, and effective N by training step.

    Args:
        frontier: list of dicts, see `keras_bond.evaluation.best_of_n_frontier`.
        points: list of dicts, the policy during training, with `step`,
            `reward`, `kl`, `effective_n`, `effective_n_low` and
            `effective_n_high`; see `keras_bond.callbacks.HeldOut`.

    Returns:
        `matplotlib.figure.Figure`; `figure.savefig(path)` writes it.

    Raises:
        ImportError: if matplotlib is missing (extra `plots`).
    """
    figure = new_figure(figsize=(11, 4.2), layout="constrained")
    _draw_frontier(figure.add_subplot(1, 2, 1), frontier, points)
    _draw_effective_n(figure.add_subplot(1, 2, 2), points)
    for axes in figure.axes:
        axes.margins(0.1)
        finish(axes)
    return figure


def plot_weight_front(front):
    """Draws reward against KL, and effective N, for each weight.

    Bars and band are one standard error to each side.

    Args:
        front: a `keras_bond.evaluation.WeightFront`.

    Returns:
        `matplotlib.figure.Figure`; `figure.savefig(path)` writes it.

    Raises:
        ImportError: if matplotlib is missing (extra `plots`).
    """
    figure = new_figure(figsize=(11, 4.2), layout="constrained")
    _draw_weights(figure.add_subplot(1, 2, 1), front)
    _draw_n_of_weights(figure.add_subplot(1, 2, 2), front.rows)
    for axes in figure.axes:
        axes.margins(0.1)
        finish(axes)
    return figure


def _draw_weights(axes, front):
    _draw_best_of_n(axes, front.frontier)
    axes.errorbar(
        [row["kl"] for row in front.rows],
        [row["reward"] for row in front.rows],
        xerr=[row["kl_error"] for row in front.rows],
        yerr=[row["reward_error"] for row in front.rows],
        fmt=".--",
        color="tab:orange",
        label="initial + weight (trained - initial)",
    )
    for row in front.rows:
        axes.annotate(
            f"{row['weight']:g}",
            (row["kl"], row["reward"]),
            textcoords="offset points",
            xytext=(6, -10),
            color="tab:orange",
        )


def _draw_n_of_weights(axes, rows):
    weights = [row["weight"] for row in rows]
    n = _finite(row["effective_n"] for row in rows)
    errors = _finite(row["effective_n_error"] for row in rows)
    low, high = ([x + sign * e for x, e in zip(n, errors)] for sign in (-1, 1))
    axes.fill_between(weights, low, high, color="tab:orange", alpha=0.2, lw=0)
    label = "N of the Best-of-N that one sample is worth"
    axes.plot(weights, n, ".-", color="tab:orange", label=label)
    axes.axhline(1.0, color="0.45", lw=1, label="initial policy")
    axes.set(xlabel="weight of the trained weights", ylabel="effective N")


def _draw_frontier(axes, frontier, points):
    _draw_best_of_n(axes, frontier)
    # The KL is measured after each epoch only.
    path = [(p["kl"], p["reward"]) for p in points if math.isfinite(p["kl"])]
    if path:
        label, color = "policy (one sample per answer)", "tab:orange"
        axes.plot(*zip(*path), ".--", color=color, alpha=0.7)
        axes.plot(*path[-1], "*", markersize=15, color=color, label=label)


def _draw_best_of_n(axes, frontier):
    kls, rewards = ([row[key] for row in frontier] for key in ("kl", "reward"))
    label = "best of N of the initial policy (N samples per answer)"
    axes.plot(kls, rewards, "o-", color="0.45", label=label)
    for row in frontier:
        axes.annotate(
            f"N = {row['n']}",
            (row["kl"], row["reward"]),
            textcoords="offset points",
            xytext=(-8, 6),
            ha="right",
            color="0.35",
        )
    axes.set(xlabel="KL to the initial policy (nats per sequence)")
    axes.set(ylabel="reward")


def _draw_effective_n(axes, points):
    steps = [p["step"] for p in points]
    low = _finite(p["effective_n_low"] for p in points)
    high = _finite(p["effective_n_high"] for p in points)
    axes.fill_between(steps, low, high, color="tab:orange", alpha=0.2, lw=0)
    middle = _finite(p["effective_n"] for p in points)
    label = "N of the Best-of-N that one sample is worth"
    axes.plot(steps, middle, ".-", color="tab:orange", label=label)
    axes.axhline(1.0, color="0.45", lw=1, label="initial policy")
    axes.set(xlabel="optimizer updates", ylabel="effective N")


def _finite(values):
    """Infinity, where all reference samples are beaten, is not drawn."""
    return [v if math.isfinite(v) else math.nan for v in values]


def finish(axes):
    """Adds grid and legend to axes on which something was drawn."""
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def new_figure(**arguments):
    """Returns a `matplotlib.figure.Figure` that belongs to no window.

    A notebook displays it, whatever backend matplotlib has there.

    Raises:
        ImportError: if matplotlib is missing (extra `plots`).
    """
    check_installed("A figure", "plots", ["matplotlib"])
    from matplotlib.figure import Figure

    class Displayed(Figure):
        def _repr_png_(self):
            return to_png(self)

    return Displayed(**arguments)


def to_png(figure):
    """Returns a figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return file.getvalue()
