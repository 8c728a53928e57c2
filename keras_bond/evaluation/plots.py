"""Where a policy stands against Best-of-N, as a picture."""

import math


def plot_best_of_n(frontier, points):
    """Draws reward against KL, and effective N by training step.

    Args:
        frontier: list of dicts, see `keras_bond.evaluation.best_of_n_frontier`.
        points: list of dicts, the policy on its way, with `step`, `reward`,
            `kl`, `effective_n`, `effective_n_low` and `effective_n_high`; see
            `keras_bond.callbacks.BestOfNReport`.

    Returns:
        `matplotlib.figure.Figure`; `figure.savefig(path)` writes it.

    Raises:
        ImportError: if matplotlib is missing.
    """
    figure = new_figure(figsize=(11, 4.2), layout="constrained")
    _draw_frontier(figure.add_subplot(1, 2, 1), frontier, points)
    _draw_effective_n(figure.add_subplot(1, 2, 2), points)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.margins(0.1)
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_frontier(axes, frontier, points):
    kls, rewards = ([row[key] for row in frontier] for key in ("kl", "reward"))
    label = "best of N of the start (N samples an answer)"
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
    way = [(p["kl"], p["reward"]) for p in points]
    label = "the policy (one sample an answer)"
    axes.plot(*zip(*way), ".--", color="tab:orange", alpha=0.7)
    axes.plot(*way[-1], "*", markersize=15, color="tab:orange", label=label)
    axes.set(xlabel="KL to the start (nats a sequence)", ylabel="reward")


def _draw_effective_n(axes, points):
    steps = [p["step"] for p in points]
    low = _finite(p["effective_n_low"] for p in points)
    high = _finite(p["effective_n_high"] for p in points)
    axes.fill_between(steps, low, high, color="tab:orange", alpha=0.2, lw=0)
    middle = _finite(p["effective_n"] for p in points)
    label = "one sample is worth the best of N"
    axes.plot(steps, middle, ".-", color="tab:orange", label=label)
    axes.axhline(1.0, color="0.45", lw=1, label="the start")
    axes.set(xlabel="optimizer updates", ylabel="effective N")


def _finite(values):
    """Infinity, where all samples of the start are beaten, is not drawn."""
    return [v if math.isfinite(v) else math.nan for v in values]


def new_figure(**arguments):
    """Returns a `matplotlib.figure.Figure` that belongs to no window.

    Raises:
        ImportError: if matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Pictures need matplotlib: `pip install matplotlib`. "
            f"Received: {error}"
        ) from error
    return Figure(**arguments)
