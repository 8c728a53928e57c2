"""The pictures of `paper_figures.py`: one PNG for each figure of the paper."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import paper_claims
import paper_runs

LABELS = {
    "reward": "expected reward (standard deviations)",
    "log_quantile": "mean log-quantile, E[log p_le] (nats)",
    "kl_start": "KL(policy ‖ start) (nats)",
    "forward_kl": "forward KL(BoN ‖ policy) (nats)",
    "backward_kl": "backward KL(policy ‖ BoN) (nats)",
}
STEPS = "optimizer step"


def draw(number, curves, file):
    """Draws one figure.

    Args:
        number: int. Figure of the paper.
        curves: see `paper_runs.train_all`.
        file: path of the PNG.
    """
    figure = PICTURES[number](curves)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def figure_2(curves):
    """Rows: forward KL, backward KL, log-quantile. Columns: N."""
    metrics = ("forward_kl", "backward_kl", "log_quantile")
    figure, grid = _grid(
        len(metrics),
        len(paper_runs.SIZES),
        "Claim of figures 2 and 10: β = 0.5 lowers both KLs to Best-of-N",
    )
    for column, n in enumerate(paper_runs.SIZES):
        for row, metric in enumerate(metrics):
            axes = grid[row, column]
            for i, beta in enumerate(paper_runs.BETAS):
                curve = curves[f"N={n} beta={beta:g}"]
                _band(axes, curve, metric, f"C{i}", f"β = {beta:g}")
            if column == 0:
                axes.set_ylabel(LABELS[metric])
        grid[0, column].set_title(f"N = {n}")
        grid[-1, column].set_xlabel(STEPS)
    _legend(figure, grid[0, 0])
    return figure


def figure_4(curves):
    """Reward and log-quantile by step, and reward by KL."""
    lines = {
        **{f"N={n} beta=0.5": f"BOND, N = {n}" for n in paper_runs.SIZES},
        **{f"iterative n={n}": f"iterative, n = {n}" for n in (2, 4)},
    }
    return _steps_and_front(
        curves,
        lines,
        "Claim of figure 4: fixed N saturates, iterative BOND continues",
        ("reward", "log_quantile"),
    )


def figure_5(curves):
    """Reward and KL by step, and reward by KL."""
    lines = {
        "jbond eta=0.02": "EMA anchor, η = 0.02",
        "jbond refresh=50": "refresh every 50 steps",
    }
    return _steps_and_front(
        curves,
        lines,
        "Claim of figure 5: EMA and refresh reach one reward, EMA at less KL",
        ("reward", "kl_start"),
    )


def figure_6(curves):
    """Rows: η, γ. Columns: reward, KL, and the one by the other."""
    figure, grid = _grid(
        2,
        3,
        "Claim of figure 6: η speeds reward up, γ slows KL down",
    )
    rates = {f"jbond eta={r:g}": f"η = {r:g}" for r in paper_runs.RATES}
    weights = {"jbond eta=0.02": "γ = 0"}
    weights.update(
        {f"jbond gamma={w:g}": f"γ = {w:g}" for w in paper_runs.KL_WEIGHTS[1:]}
    )
    rows = ((rates, "γ = 0"), (weights, "η = 0.02"))
    for row, (lines, fixed) in zip(grid, rows):
        _draw_steps(row, curves, lines, ("reward", "kl_start"))
        _draw_front(row[-1], curves, lines)
        row[0].set_title(fixed)
        row[0].legend(frameon=False)
    return figure


def figure_7(curves):
    """Reward and KL by step, and reward by KL."""
    lines = {"jbond eta=0.02": "J-BOND"}
    lines.update(
        {
            f"reinforce {s:g}": f"REINFORCE, β_RL = {s:g}"
            for s in paper_runs.STRENGTHS
        }
    )
    return _steps_and_front(
        curves,
        lines,
        "Claim of figure 7: J-BOND has more reward at equal KL than REINFORCE",
        ("reward", "kl_start"),
    )


def figure_8(curves):
    """Expected reward of J-BOND against the log-quantile."""
    figure, grid = _grid(
        1, 1, "Figure 8: J-BOND's expected reward meets log p_le at 0.5", 6.4
    )
    axes = grid[0, 0]
    p_le = np.linspace(0.02, 1, 200)
    points = np.linspace(0.05, 0.95, 19)
    axes.plot(p_le, np.log(p_le), color="0.4", label="log p_le")
    axes.plot(
        p_le,
        -paper_claims.LOG_16 * (1 - p_le) ** 2,
        label="E[r_J] = -log 16 · (1 - p_le)²",
    )
    axes.plot(
        points,
        paper_claims.simulated_jbond_reward(points).mean(axis=0),
        ".",
        color="C0",
        label="mean r_J of simulated draws",
    )
    axes.plot(0.5, np.log(0.5), "o", color="C3", mfc="none", ms=12)
    axes.set_xlabel("quantile p_le of a completion under the anchor")
    axes.set_ylabel("reward (nats)")
    axes.legend(frameon=False)
    return figure


def figure_9(curves):
    """Columns: reward, log-quantile, backward KL. Rows: N."""
    metrics = ("reward", "log_quantile", "backward_kl")
    sizes = paper_runs.LEARNED_SIZES
    figure, grid = _grid(
        len(sizes),
        len(metrics),
        "Claim of figure 9: learned quantiles do about as well as counted ones",
    )
    for row, n in zip(grid, sizes):
        lines = {
            f"N={n} beta=0.5": "counted, 16 samples (eq. 10)",
            f"N={n} learned": "learned (eq. 25)",
        }
        _draw_steps(row, curves, lines, metrics)
        row[1].set_title(f"N = {n}")
    _legend(figure, grid[0, 0])
    return figure


def _grid(rows, columns, title, width=None):
    size = (width or 4.2 * columns, 3.3 * rows + 0.6 if rows > 1 else 4.2)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained"
    )
    figure.suptitle(title, fontsize="x-large" if columns > 1 else "large")
    return figure, grid


def _legend(figure, axes):
    """Puts the legend of one panel below all, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(labels),
        frameon=False,
    )


def _band(axes, curve, metric, color, label):
    """Mean over seeds as a line, their whole spread as a band."""
    steps, values = curve["step"][0], curve[metric]
    axes.fill_between(
        steps, values.min(0), values.max(0), color=color, alpha=0.15, lw=0
    )
    axes.plot(steps, values.mean(axis=0), color=color, label=label)


def _steps_and_front(curves, lines, title, metrics):
    figure, grid = _grid(1, len(metrics) + 1, title)
    _draw_steps(grid[0], curves, lines, metrics)
    _draw_front(grid[0, -1], curves, lines)
    _legend(figure, grid[0, 0])
    return figure


def _draw_steps(row, curves, lines, metrics):
    for axes, metric in zip(row, metrics):
        for i, (name, label) in enumerate(lines.items()):
            _band(axes, curves[name], metric, f"C{i}", label)
        axes.set_xlabel(STEPS)
        axes.set_ylabel(LABELS[metric])


def _draw_front(axes, curves, lines):
    """Reward against KL: mean of the seeds at each step."""
    for i, name in enumerate(lines):
        curve = curves[name]
        axes.plot(
            curve["kl_start"].mean(axis=0),
            curve["reward"].mean(axis=0),
            ".-",
            markersize=4,
            linewidth=1,
            color=f"C{i}",
        )
    axes.set_xlabel(LABELS["kl_start"])
    axes.set_ylabel(LABELS["reward"])


PICTURES = {
    2: figure_2,
    4: figure_4,
    5: figure_5,
    6: figure_6,
    7: figure_7,
    8: figure_8,
    9: figure_9,
}
