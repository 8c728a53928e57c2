"""The report of the speed benchmarks: Markdown tables and pictures."""

import importlib.metadata
import os
import platform

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import speed_costs
from reports import markdown
from reports import save
from speed_results import beyond_embedding

PACKAGES = (
    "keras",
    "keras-hub",
    "jax",
    "tensorflow",
    "torch",
    "transformers",
    "trl",
)
MEGA = 2**20
DASH = "–"
# Long phases first, so that equal ones have equal colors in all pictures.
COLORS = plt.get_cmap("tab20").colors
ORDER = (
    "rollout policy",
    "rollout anchor",
    "rollout policy and anchor",
    "collate",
    "score_with_anchor",
    "reward",
    "learn",
    "anchor",
    "other",
)


def report(results, facts):
    """All tables of `step.py`.

    Args:
        results: list of `speed_results.Result`.
        facts: dict with `command`, `machine` and `versions`.

    Returns:
        str, Markdown.
    """
    parts = head("Time of a step", facts)
    for result in results:
        parts += [f"## {result.label}", contenders_table(result)]
        parts += [
            *failures(result),
            *notes(result),
            "Phases, in ms:",
            phases_table(result),
        ]
        parts += [machine_line(result), roofline_table(result)]
        parts += [parts_table(result)]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def head(title, facts):
    """Title, command, and what the numbers depend on."""
    return [
        f"# {title}",
        f"`{facts['command']}`",
        f"{facts['machine']}; {facts['versions']}. Medians; a ratio is the "
        "median of ratios round by round, with its quartiles.",
    ]


def contenders_table(result):
    """Step times, ratios, memory."""
    first = result.contenders[0].name
    rows = []
    for c in result.contenders:
        if not c.seconds.size:
            rows.append([c.name, "failed", *[DASH] * 8])
            continue
        rows.append(
            [
                c.name,
                f"{1e3 * c.median:.1f}",
                times(c.ratio),
                f"{c.cpu_ratio[0]:.2f}",
                f"{c.shape.generated_tokens / c.median:,.0f}",
                f"{c.over_least_step():.2f}",
                f"{c.peak_bytes / MEGA:,.0f}",
                f"{c.first:.1f}",
                DASH if c.compilations is None else str(c.compilations),
                DASH if c.threads is None else str(c.threads),
            ]
        )
    columns = ["contender", "step [ms]", f"time / {first}"]
    columns += [f"CPU time / {first}", "tokens/s", "time / roofline"]
    columns += ["peak [MiB]", "first step [s]"]
    columns += ["compilations later", "threads"]
    return markdown(columns, rows)


def failures(result):
    """Why contenders failed."""
    for c in result.contenders:
        if c.failure:
            yield f"`{c.name}` failed:\n\n```\n{c.failure}\n```"


def notes(result):
    """What has to be known of single contenders."""
    expected = result.contenders[0].facts.get("parameters")
    for c in result.contenders:
        if "note" in c.facts:
            yield f"`{c.name}`: {c.facts['note']}."
        parameters = c.facts.get("parameters", expected)
        if expected and parameters != expected:
            yield (
                f"`{c.name}` has {parameters:,} parameters, the first "
                f"contender {expected:,}."
            )


def phases_table(result):
    """Milliseconds of each phase, of the steps that wait after each."""
    shown = [c for c in result.contenders if c.phases]
    names = list(dict.fromkeys(n for c in shown for n in c.phases))
    rows = []
    for name in names:
        cells = [c.phases.get(name) for c in shown]
        rows.append([name, *(milliseconds(cell) for cell in cells)])
    return markdown(["phase", *(c.name for c in shown)], rows)


def machine_line(result):
    machine = result.machine
    return (
        f"Machine: {machine['flops'] / 1e9:,.0f} GFLOP/s in products of "
        f"matrices, {machine['read_bytes'] / 1e9:,.0f} GB/s read, "
        f"{machine['copy_bytes'] / 1e9:,.0f} GB/s copied. "
        f"Least time of a step: {1e3 * result.least_step():.1f} ms."
    )


def roofline_table(result):
    """Measured over least possible time of our phases."""
    rows = []
    for c in filter(is_ours, result.contenders):
        for name, seconds in c.phases.items():
            if (least := result.least(name)) is not None:
                row = roofline_row(result, name, seconds, least)
                rows.append([c.name, name, *row, f"{c.over_least(name):.2f}"])
        if seconds := c.facts.get("decode_seconds"):
            count = result.shape.prompts * result.shape.samples
            name, least = f"{count} rows at once", result.least("decode")
            row = roofline_row(result, "decode", seconds, least)
            rows.append([c.name, name, *row, f"{seconds / least:.2f}"])
    columns = ["contender", "phase", "bound by", "measured [ms]"]
    return markdown([*columns, "least [ms]", "measured / least"], rows)


def is_ours(contender):
    """Whether its phases are those that `speed_costs` is about."""
    return "extras" in contender.facts


def roofline_row(result, name, seconds, least):
    costs = speed_costs.phases(result.shape)[name]
    bound = speed_costs.bound(costs, result.machine)
    return bound, milliseconds(seconds), milliseconds(least)


def parts_table(result):
    """Anchor update, targets and temporary memory, where they are known."""
    rows = []
    for c in result.contenders:
        if "anchor_seconds" not in c.facts:
            continue
        both = c.facts["anchor_seconds"] + c.facts["targets_seconds"]
        temp = c.facts.get("temp_bytes", {})
        cells = [f"{n}: {b / MEGA:,.0f}" for n, b in temp.items()]
        rows.append(
            [
                c.name,
                milliseconds(c.facts["anchor_seconds"]),
                milliseconds(c.facts["targets_seconds"]),
                f"{100 * both / c.median:.2f} %",
                "; ".join(cells) or DASH,
            ]
        )
    columns = ["contender", "anchor update [ms]", "targets [ms]"]
    columns += ["both, of a step", "temporary memory of the stages [MiB]"]
    return markdown(columns, rows) if rows else ""


def report_scaling(sweeps, facts):
    """All tables of `scaling.py`.

    Args:
        sweeps: list of `speed_results.Result`.
        facts: dict with `command`, `machine` and `versions`.

    Returns:
        str, Markdown.
    """
    parts = head("How a step scales", facts)
    for sweep in sweeps:
        parts += [f"## {sweep.label}", sweep_table(sweep)]
        parts += failures(sweep)
        if sweep.label.startswith("vocabulary"):
            parts.append(memory_line(sweep))
        if sweep.label.startswith("raggedness"):
            parts.append(ragged_table(sweep))
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def sweep_table(sweep):
    """Time and memory at each value, against the base."""
    base = sweep.contenders[0]
    rows = []
    for c in sorted(sweep.contenders, key=lambda c: float(c.name)):
        if not c.seconds.size:
            rows.append([c.name, "failed", *[DASH] * 7])
            continue
        temp = learning_bytes(c)
        rows.append(
            [
                c.name,
                f"{1e3 * c.median:.1f}",
                times(c.ratio),
                f"{sweep.least_step(c.shape) / sweep.least_step():.2f}",
                f"{c.shape.generated_tokens / c.median:,.0f}",
                f"{c.over_least_step():.2f}",
                f"{c.peak_bytes / MEGA:,.0f}",
                *(mebibytes(x) for x in (temp, beyond_embedding(c, temp))),
            ]
        )
    columns = [sweep.label, "step [ms]", f"time / {base.name}"]
    columns += [f"roofline / {base.name}", "tokens/s", "time / roofline"]
    columns += ["peak [MiB]", "temporary, learn [MiB]"]
    return markdown([*columns, "beyond the embedding [MiB]"], rows)


def ragged_table(sweep):
    """Phases where completions end early, over those where none does."""
    full, *others = sweep.contenders
    # With LoRA policy and anchor are drawn from together.
    timed = ("rollout", "score_with_anchor", "learn")
    names = [n for n in ORDER if n in full.phases and n.startswith(timed)]
    rows = []
    for c in others:
        tokens = c.shape.generated_tokens / full.shape.generated_tokens
        shares = (c.phases.get(n, np.nan) / full.phases[n] for n in names)
        rows.append([c.name, f"{tokens:.2f}", *(f"{x:.2f}" for x in shares)])
    return markdown(["ends with", "tokens drawn", *names], rows)


def memory_line(sweep):
    """How far temporary memory depends on the vocabulary."""
    sizes = [learning_bytes(c) for c in sweep.contenders]
    if None in sizes:
        return ""
    beyond = [beyond_embedding(c, s) for c, s in zip(sweep.contenders, sizes)]
    raw = max(sizes) / min(sizes) - 1.0
    rest = max(beyond) / max(min(beyond), 1) - 1.0
    return (
        "Temporary memory of the learning stage is what XLA sets aside beside "
        "arguments and results; beyond the embedding means less one gradient "
        "of the embedding in full fine-tuning, and all of it with LoRA. "
        f"Largest over smallest, less 1: {100 * raw:.1f} % raw, "
        f"{100 * rest:.1f} % beyond the embedding."
    )


def learning_bytes(contender):
    """Temporary bytes of the learning stage, `None` where unknown."""
    return contender.facts.get("temp_bytes", {}).get("learn")


def mebibytes(size):
    return DASH if size is None else f"{size / MEGA:,.1f}"


def times(ratio):
    """Median and quartiles."""
    median, low, high = ratio
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def milliseconds(seconds):
    return (
        DASH if seconds is None or np.isnan(seconds) else f"{seconds * 1e3:.1f}"
    )


def versions():
    """Names and versions of what is measured, where it is installed."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def facts(script, **options):
    """What the numbers depend on, for the head of a report.

    Args:
        script: str. Name of the file that runs.
        **options: its arguments, each a value, a list, or a bool for a flag.
    """
    parts = [f"python integration/benchmarks/{script}"]
    for name, value in options.items():
        if value is False:
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        values = [] if value is True else [str(x) for x in values]
        parts.append(" ".join([f"--{name.replace('_', '-')}", *values]))
    return {
        "command": " ".join(parts),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": versions(),
    }


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
    axis.set_xlabel("ms per step")
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
    shown.sort(key=lambda c: float(c.name))
    values = [float(c.name) for c in shown]
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
    if min(values) > 0:
        axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(values, [f"{value:,g}" for value in values])
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
        known.sort(key=lambda c: float(c.name))
        if not known:
            continue
        sizes = [learning_bytes(c) for c in known]
        rest = [beyond_embedding(c, s) for c, s in zip(known, sizes)]
        values = [float(c.name) for c in known]
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
