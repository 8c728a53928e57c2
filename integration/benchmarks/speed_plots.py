"""Pictures of the speed benchmarks."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from reports import save
from speed_results import beyond_embedding
from speed_tables import MEGA
from speed_tables import learning_bytes

# Long phases first, so that equal ones have equal colours in all pictures.
COLORS = plt.get_cmap("tab20").colors
ORDER = (
    "rollout policy",
    "rollout anchor",
    "rollout True",
    "lay out",
    "judge",
    "reward",
    "learn",
    "anchor",
    "other",
)


def plot_steps(results, path):
    """Stacked bars of phases, the ratio on each, the roofline as a mark.

    Args:
        results: list of `speed_results.Result`.
        path: where the PNG goes.
    """
    rows = max(len(result.contenders) for result in results)
    figure, axes = plt.subplots(
        len(results),
        1,
        figsize=(9, (0.5 * rows + 1.4) * len(results) + 0.6),
        squeeze=False,
    )
    names = phase_names(results)
    for result, axis in zip(results, axes[:, 0]):
        draw_result(axis, result, names)
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=color_of(name, names))
        for name in names
    ]
    roofline = plt.Line2D([], [], color="black", linestyle="--")
    figure.legend(
        [*handles, roofline],
        [*names, "least possible"],
        loc="lower center",
        ncols=5,
        fontsize=8,
    )
    save(figure, path, bottom=0.9 / figure.get_size_inches()[1])


def phase_names(results):
    found = dict.fromkeys(
        name
        for result in results
        for contender in result.contenders
        for name in contender.phases
    )
    known = [name for name in ORDER if name in found]
    return [*known, *(name for name in found if name not in known)]


def color_of(name, names):
    place = ORDER.index(name) if name in ORDER else names.index(name) + 9
    return COLORS[(2 * place + 2 * place // 20) % 20]


def draw_result(axis, result, names):
    shown = [c for c in result.contenders if c.seconds.size]
    first = shown[0].name if shown else ""
    for y, contender in enumerate(shown):
        left = 0.0
        scale = contender.median / max(sum(contender.phases.values()), 1e-9)
        for name in names:
            width = 1e3 * scale * contender.phases.get(name, 0.0)
            axis.barh(y, width, 0.7, left, color=color_of(name, names))
            left += width
        axis.annotate(
            f"{1e3 * contender.median:,.0f} ms, "
            f"{contender.ratio[0]:.2f} × {first}",
            (left, y),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axis.axvline(1e3 * result.least_step(), color="black", linestyle="--")
    axis.set_yticks(np.arange(len(shown)), [c.name for c in shown])
    axis.invert_yaxis()
    axis.margins(x=0.25)
    axis.set_xlim(left=0)
    axis.set_xlabel("ms a step")
    axis.set_title(result.label, fontsize=10)


def plot_scaling(sweeps, path):
    """Time against each number, beside the roofline's; memory where known.

    Args:
        sweeps: list of `speed_results.Result`.
        path: where the PNG goes.
    """
    columns = min(3, len(sweeps) + 1)
    rows = -(-(len(sweeps) + 1) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.4 * columns, 3.6 * rows), squeeze=False
    )
    axes = axes.ravel()
    for sweep, axis in zip(sweeps, axes):
        draw_sweep(axis, sweep)
    draw_memory(axes[len(sweeps)], sweeps)
    for axis in axes[len(sweeps) + 1 :]:
        axis.remove()
    save(figure, path)


def draw_sweep(axis, sweep):
    """Ratios to the base with their quartiles."""
    base = sweep.contenders[0]
    shown = [c for c in sweep.contenders if c.seconds.size]
    shown.sort(key=lambda c: int(c.name))
    values = [int(c.name) for c in shown]
    medians, low, high = np.array([c.ratio for c in shown]).T
    axis.errorbar(
        values,
        medians,
        (medians - low, high - medians),
        marker="o",
        capsize=3,
        label="measured",
    )
    least = [sweep.least_step(c.shape) / sweep.least_step() for c in shown]
    axis.plot(values, least, "k--", label="least possible")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(values, [f"{value:,}" for value in values])
    axis.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axis.minorticks_off()
    axis.set_xlabel(sweep.label.partition(",")[0])
    axis.set_ylabel(f"time of a step / that at {base.name}")
    axis.set_title(sweep.label, fontsize=10)
    axis.legend(fontsize=8)


def draw_memory(axis, sweeps):
    """Temporary memory of learning against the vocabulary."""
    for sweep in sweeps:
        if not sweep.label.startswith("vocabulary"):
            continue
        known = [c for c in sweep.contenders if learning_bytes(c) is not None]
        known.sort(key=lambda c: int(c.name))
        if not known:
            continue
        sizes = [learning_bytes(c) for c in known]
        rest = [beyond_embedding(c, s) for c, s in zip(known, sizes)]
        values = [int(c.name) for c in known]
        mode = sweep.label.partition(", ")[2]
        (line,) = axis.plot(
            values, np.array(sizes) / MEGA, "o-", label=f"{mode}, all"
        )
        axis.plot(
            values,
            np.array(rest) / MEGA,
            "s--",
            color=line.get_color(),
            label=f"{mode}, beyond the embedding",
        )
        axis.set_xticks(values, [f"{v:,}" for v in values], fontsize=7)
    if not axis.lines:
        axis.remove()
        return
    axis.set_ylim(bottom=0)
    axis.set_xlabel("vocabulary")
    axis.set_ylabel("temporary memory of learning [MiB]")
    axis.legend(fontsize=8)
