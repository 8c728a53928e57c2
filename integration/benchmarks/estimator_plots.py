"""Pictures of the benchmark."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from estimator_gradients import places_of
from estimator_tables import PLACE_NAMES
from reports import save

BARS = (
    ("paper", (4, 4)),
    ("order_statistics + pairs", (1, 4)),
    ("control_variate + pairs", (1, 2)),
    ("control_variate + pairs, mixed", (4, 4)),
    ("control_variate + harmonic, mixed", (1, 2)),
    ("control_variate + harmonic, mixed", (4, 4)),
    ("pooled", (1, 2)),
    ("pooled", (4, 4)),
    ("pooled", (4, 8)),
)
TICKS = (0.5, 1, 2, 5, 10, 20)
COLORS = ("#9ecae1", "#4292c6", "#08519c")


def label(name, split):
    return f"{name}  {split[0]}+{split[1]}"


def plot_variances(records, path):
    """Bars: how many times less variance than the paper's, whole gradient.

    Args:
        records: list of dict with `ratio_sequences`.
        path: where the PNG goes.
    """
    shown = []
    for name, (p, k) in BARS:
        found = places_of(records, part="whole", name=name, n=2, p=p, k=k)
        if all(r and "ratio_sequences" in r for r in found):
            shown.append((label(name, (p, k)), found))
    if not shown:
        return
    figure, axis = plt.subplots(figsize=(9, 0.6 * len(shown) + 1.6))
    rows = np.arange(len(shown))[::-1]
    for i, (place, color) in enumerate(zip(PLACE_NAMES, COLORS)):
        widths = [found[i]["ratio_sequences"] for _, found in shown]
        bars = axis.barh(
            rows + 0.27 * (1 - i), widths, 0.25, color=color, label=place
        )
        axis.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axis.axvline(1.0, color="black", linewidth=1)
    axis.set_xscale("log")
    axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axis.minorticks_off()
    axis.set_yticks(rows, [name for name, _ in shown])
    axis.set_xlabel(
        "times less variance than J-BOND 1+2, at equal generated sequences"
    )
    axis.legend(loc="upper right")
    axis.margins(x=0.1)
    save(figure, path)


def plot_learning(results, path):
    """Distance against sequences, and excess KL against win rate.

    Args:
        results: list of dict, see `estimator_learning.compete`.
        path: where the PNG goes.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8))
    kinds = dict.fromkeys((r["name"], r["p"], r["k"]) for r in results)
    for color, (name, p, k) in enumerate(kinds):
        for axis, anchor in ((left, "fixed"), (right, "moving")):
            result = [
                r
                for r in results
                if (r["name"], r["p"], r["k"], r["anchor"])
                == (name, p, k, anchor)
            ][-1]
            style = {"color": f"C{color}", "label": label(name, (p, k))}
            curve = result["curve"]
            if anchor == "fixed":
                distance = curve["distance"].mean(axis=0)
                steps = np.arange(1, len(distance) + 1)
                axis.plot(steps * (p + k), distance, **style)
            else:
                axis.plot(*excess_by_win_rate(curve, result["level"]), **style)
    left.set_yscale("log")
    left.set_xlabel("generated sequences a prompt")
    left.set_ylabel("Jeffreys distance to Best-of-2 [nats]")
    left.set_title("fixed anchor")
    right.set_xlabel("win rate against the start")
    right.set_ylabel("KL to the start beyond Best-of-N's [nats]")
    right.set_title("moving anchor, at equal win rate")
    right.legend(fontsize=8)
    save(figure, path)


def excess_by_win_rate(curve, level):
    """Mean excess KL of all worlds at win rates up to `level`."""
    win_rates = np.linspace(0.52, level, 30)
    excess = [
        np.interp(win_rates, np.maximum.accumulate(wins), values)
        for wins, values in zip(curve["win_rate"], curve["excess"])
    ]
    return win_rates, np.mean(excess, axis=0)
