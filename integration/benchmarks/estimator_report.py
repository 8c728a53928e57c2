"""The report of the benchmark: Markdown tables and pictures."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from estimator_gradients import PAPER_SPLIT
from estimator_gradients import places_of
from estimator_gradients import tie_records
from estimator_world import PLACES
from estimator_world import SUCCESS_RATE
from reports import markdown
from reports import save

PLACE_NAMES = ("π = anchor", "halfway", "π = Best-of-2")
TIE_RULES = ("strict", "random", "midrank")
DASH = "–"
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


def ratio(record):
    """Variance ratio at equal prompts, and at equal sequences."""
    if record is None or "ratio_prompts" not in record:
        return DASH
    return f"{record['ratio_prompts']:.3g} / {record['ratio_sequences']:.3g}"


def signals(records):
    """Exact signal if known, else what was measured."""
    for r in records:
        if r is None:
            yield DASH
        elif np.isnan(r["designed_signal"]):
            yield f"{r['signal']:.3f} ± {2.6 * r['signal_error']:.3f}"
        else:
            # Rounded before: no minus sign in front of a zero.
            yield f"{round(r['designed_signal'], 3) + 0.0:.3f}"


def splits_of(records):
    return sorted({(r["p"], r["k"]) for r in records})


def split_name(p, k):
    return f"{p}+{k}"


def tests_table(records):
    """How far the means are from what they are meant to be."""
    rows = []
    for part in ("forward", "backward", "whole"):
        names = [
            (name, n) for n in (2, 4) for name in names_of(records, part, n)
        ]
        for name, n in names:
            found = [
                r
                for r in records
                if (r["part"], r["name"], r["n"]) == (part, name, n)
            ]
            z = np.abs(np.concatenate([r["z_scores"] for r in found]))
            design = max(r["designed_bias"] for r in found)
            measured = max(r["bias"] for r in found)
            if np.isnan(design):
                verdict = f"up to {measured:.2f} (measured)"
            elif design < 1e-6:
                verdict = "none"
            else:
                verdict = f"up to {design:.2f}"
            largest = DASH if np.isnan(z).any() else f"{z.max():.2f}"
            rows.append([part, str(n), name, str(z.size), largest, verdict])
    columns = ["part", "N", "estimator", "tests", "largest z", "bias by design"]
    return markdown(columns, rows)


def variance_table(records, part, names, n=2):
    """Variance ratios of one part for every split."""
    rows = []
    for name in names:
        for p, k in splits_of(records):
            found = places_of(records, part=part, name=name, n=n, p=p, k=k)
            if any(found):
                rows.append(
                    [name, split_name(p, k), *(ratio(r) for r in found)]
                )
    return markdown(["estimator", "P+k", *PLACE_NAMES], rows)


def signal_table(records, part, names, num_policy_samples, n=2):
    """How much of the exact gradient an estimator expects."""
    rows = []
    for name in names:
        for p, k in splits_of(records):
            if p != num_policy_samples:
                continue
            found = places_of(records, part=part, name=name, n=n, p=p, k=k)
            if any(found):
                rows.append([name, split_name(p, k), *signals(found)])
    return markdown(["estimator", "P+k", *PLACE_NAMES], rows)


def ties_table(records):
    """Mean backward signal for a reward that is seldom 1."""
    rows = []
    for p, k in splits_of(records):
        found = tie_records(records, k) if p == 4 else {}
        for kind in ("pairs", "harmonic", "monte_carlo"):
            row = [found.get(f"{kind}, {t}, mixed") for t in TIE_RULES]
            if all(row):
                cells = [
                    f"{r['designed_signal']:.3f} "
                    f"({r['signal']:.3f} ± {2.6 * r['signal_error']:.3f})"
                    for r in row
                ]
                rows.append([kind, str(k), *cells])
        if "pooled" in found:
            r = found["pooled"]
            cell = f"{r['signal']:.3f} ± {2.6 * r['signal_error']:.3f}"
            rows.append(["pooled", str(k), DASH, DASH, cell])
    return markdown(["quantiles", "k", *TIE_RULES], rows)


def scale_table(records):
    """Forward variance with the control variate at scale 0, 1 and auto."""
    rows = [
        [
            f"Best-of-{r['n']}",
            f"{abs(r['kl']):.2f}",
            *(
                f"{r[name] / r['order_statistics']:.2f}"
                for name in ("scale_1", "auto")
            ),
        ]
        for r in records
    ]
    return markdown(
        ["π", "KL to the anchor", "scale 1", "auto (the library's)"], rows
    )


def kl_table(records):
    """Variance ratios of the KL gradient's estimators."""
    settings = dict.fromkeys((r["length"], r["kl"]) for r in records)
    kinds = dict.fromkeys((r["name"], r["p"]) for r in records)
    rows = []
    for name, p in kinds:
        found = {
            (r["length"], r["kl"]): r
            for r in records
            if (r["name"], r["p"]) == (name, p)
        }
        rows.append([name, str(p), *(ratio(found[s]) for s in settings)])
    columns = [f"{length} tokens, {kl} nats" for length, kl in settings]
    return markdown(["estimator", "P", *columns], rows)


def learning_table(results, anchor):
    """Distance or excess KL at its budgets or win rates."""
    levels = sorted({r["level"] for r in results if r["anchor"] == anchor})
    rows = []
    kinds = dict.fromkeys((r["name"], r["p"], r["k"]) for r in results)
    for name, p, k in kinds:
        cells = []
        for level in levels:
            result = next(
                r
                for r in results
                if (r["name"], r["p"], r["k"], r["anchor"], r["level"])
                == (name, p, k, anchor, level)
            )
            cells += learning_cells(result)
        rows.append([name, split_name(p, k), *cells])
    columns = ["estimator", "P+k"]
    for level in levels:
        if anchor == "fixed":
            columns += [f"after {level}", "win rate", "rate"]
        else:
            columns += [f"at win rate {level}", "sequences", "rate"]
    return markdown(columns, rows)


def learning_cells(result):
    values = result["values"]
    if np.isnan(values).any():
        return ["not reached", DASH, f"{result['learning_rate']:g}"]
    error = values.std(ddof=1) / np.sqrt(len(values))
    second = f"{result['sequences'].mean():.0f}"
    if result["anchor"] == "fixed":
        steps = result["level"] // (result["p"] + result["k"])
        second = f"{result['curve']['win_rate'][:, steps - 1].mean():.3f}"
    return [
        f"{values.mean():.4f} ± {error:.4f}",
        second,
        f"{result['learning_rate']:g}",
    ]


def largest_ratio_error(records):
    """The largest relative standard error of the ratios that are shown."""
    errors = [
        r["ratio_error"] / r["ratio_prompts"]
        for r in records
        if "ratio_prompts" in r and r.get("scene") in (None, *PLACES)
    ]
    return max(errors, default=0.0)


def backward_names(records, n=2):
    """Names of the backward estimators with the mixed baseline."""
    return [
        name
        for name in names_of(records, "backward", n)
        if name.endswith(("mixed", "pooled"))
    ]


def names_of(records, part, n=2):
    """Names of the estimators of a part; more samples allow more of them."""
    return list(
        dict.fromkeys(
            r["name"]
            for r in sorted(records, key=lambda r: -r["p"] * r["k"])
            if (r["part"], r["n"]) == (part, n)
        )
    )


def report(records, scale_records, kl_records, results, facts):
    """The whole report.

    Args:
        records, scale_records, kl_records, results: lists of dict.
        facts: dict with `command`, `draws`, `tests`, `threshold`, `largest`.

    Returns:
        str, Markdown.
    """
    paper = split_name(*PAPER_SPLIT)
    sections = [
        f"# Estimators\n\n`{facts['command']}`\n\n"
        f"{facts['draws']} draws of 16 prompts with 32 outcomes each.\n",
        "## Bias\n\nMeans against what each is meant to estimate: "
        f"{facts['tests']} z-scores, the largest {facts['largest']:.2f}; one "
        f"above {facts['threshold']:.2f} has a probability below 1e-4 if all "
        "are right. Bias by design: norm, as a share of the exact gradient "
        "at the anchor.\n\n" + tests_table(records),
        "### Signal\n\nExpected gradient along the exact one (1 is right); "
        "at π = Best-of-2, where that of N = 2 is 0, along that of the initial "
        "policy (0 is right). With ±: measured, 99 % interval. Forward parts "
        "have no bias.\n\nBackward part:\n\n"
        + signal_table(records, "backward", backward_names(records), 4),
        "Backward part, 1 policy sample:\n\n"
        + signal_table(records, "backward", ["pooled"], 1),
        "Backward part, N = 4:\n\n"
        + signal_table(records, "backward", backward_names(records, 4), 4, n=4),
        "Whole gradient, 1 policy sample:\n\n"
        + signal_table(records, "whole", names_of(records, "whole"), 1),
        "Whole gradient, 4 policy samples:\n\n"
        + signal_table(records, "whole", names_of(records, "whole"), 4),
        "## Variance of the gradient\n\nThe paper's over the estimator's, at "
        "equal prompts / at equal generated sequences (all P + k); above 1 is "
        f"better. The paper's is {paper}. Relative standard errors below "
        f"{100 * largest_ratio_error(records):.1f} %.\n\n"
        "### Whole gradient (Jeffreys, β = 0.5)\n\n"
        + variance_table(records, "whole", names_of(records, "whole")),
        "### Forward part\n\n"
        + variance_table(records, "forward", names_of(records, "forward")),
        "### Forward part, N = 4 (against the paper's of 1+4)\n\n"
        + variance_table(
            records, "forward", names_of(records, "forward", 4), n=4
        ),
        "### Backward part\n\n"
        + variance_table(records, "backward", names_of(records, "backward")),
        "## Scale of the control variate\n\nForward variance relative to "
        "`order_statistics`, 4 anchor samples.\n\n"
        + scale_table(scale_records),
        f"## Ties: binary reward of success rate {SUCCESS_RATE}, π = anchor\n\n"
        "Mean backward signal over the exact one: exact expectation "
        "(measured ± 99 % interval), 4 policy samples.\n\n"
        + ties_table(records),
        "## KL gradient\n\nVariance of the log-ratio of one sample (eq. 19) "
        "over the estimator's, at equal prompts / at equal policy samples. "
        "Relative standard errors below "
        f"{100 * largest_ratio_error(kl_records):.1f} %.\n\n"
        + kl_table(kl_records),
    ]
    if results:
        sections += learning_sections(results)
    return "\n".join(sections)


def learning_sections(results):
    return [
        "## Learning, fixed anchor\n\nJeffreys distance to Best-of-2 in nats, "
        "after generated sequences a prompt; mean ± standard error of "
        f"{len(results[0]['values'])} worlds, and the win rate against the "
        f"start (Best-of-2's: {results[0]['target_win_rate']:.3f}); learning "
        "rate chosen in other worlds.\n\n" + learning_table(results, "fixed"),
        "## Learning, moving anchor\n\nKL to the initial policy beyond that of "
        "Best-of-N with the same win rate, in nats, and generated sequences a "
        "prompt until it is reached.\n\n" + learning_table(results, "moving"),
    ]


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
    right.set_xlabel("win rate against the initial policy")
    right.set_ylabel("KL to the initial policy beyond Best-of-N's [nats]")
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
