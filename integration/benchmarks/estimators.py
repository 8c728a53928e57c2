"""Bias and variance of the estimators of `keras_bond.Bond`, and of others.

    python integration/benchmarks/estimators.py [--learning] [--draws 20000]
        [--splits 1+2 4+4 ...] [--output FOLDER]

Simulates draws of small softmax policies, whose distributions and gradients are
exact, and passes them to the library's own formulas. Writes table.md, CSV files
of the raw numbers and pictures. Fails if the mean of an estimator is not as
expected; that happens by chance with a probability below 1e-4.
"""

import argparse
import os
import pathlib
import time

from reports import progress
from reports import write_csv

FALSE_ALARM = 1e-4
OUTPUT = pathlib.Path(__file__).resolve().parents[1] / "runs" / "estimators"


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument(
        "--splits", nargs="+", default=[], help='P+k, such as "1+2"'
    )
    parser.add_argument(
        "--learning", action="store_true", help="train policies as well"
    )
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=int,
        help="generated sequences a prompt: with a fixed anchor, and last "
        "with a moving one",
    )
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the benchmark; returns False where a mean is wrong."""
    arguments = parse_arguments(argv)
    # Draws are vectorized and compiled by JAX.
    os.environ["KERAS_BACKEND"] = "jax"
    import estimator_report

    arguments.output.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()
    records, scale_records = simulate_gradients(arguments)
    kl_records = simulate_kl(arguments)
    results = compete(arguments) if arguments.learning else []
    facts = {"command": command(arguments), "draws": arguments.draws}
    facts.update(check_means([*records, *scale_records, *kl_records]))
    table = estimator_report.report(
        records, scale_records, kl_records, results, facts
    )
    (arguments.output / "table.md").write_text(table)
    write_csv(arguments.output / "gradients.csv", records)
    write_csv(arguments.output / "kl.csv", kl_records)
    estimator_report.plot_variances(
        records, arguments.output / "variance_ratios.png"
    )
    if results:
        write_csv(arguments.output / "learning.csv", results)
        estimator_report.plot_learning(
            results, arguments.output / "learning.png"
        )
    print(table)
    passed = facts["largest"] < facts["threshold"]
    print(
        f"{facts['tests']} tests of a mean, largest z "
        f"{facts['largest']:.2f}, allowed {facts['threshold']:.2f}: "
        f"{'passed' if passed else 'FAILED'}. "
        f"{time.perf_counter() - clock:.0f} s, {arguments.output}"
    )
    return passed


def simulate_gradients(arguments):
    import estimator_gradients

    splits = [tuple(map(int, s.split("+"))) for s in arguments.splits]
    records = []
    scenes = estimator_gradients.make_scenes()
    for split in splits or estimator_gradients.SPLITS:
        progress(f"gradients of {split[0]}+{split[1]} samples")
        records += estimator_gradients.measure_split(
            split, scenes, arguments.draws, seed=sum(split)
        )
    estimator_gradients.add_ratios(records)
    progress("scale of the control variate")
    return records, list(estimator_gradients.measure_scale(arguments.draws))


def simulate_kl(arguments):
    import estimator_kl

    records = []
    for length, kl in estimator_kl.SETTINGS:
        progress(f"KL gradient, {length} tokens, {kl} nats")
        for num_samples in estimator_kl.POLICY_SAMPLES:
            records += estimator_kl.measure_kl(
                length, kl, num_samples, max(2, arguments.draws // 5)
            )
    estimator_kl.add_ratios(records)
    return records


def compete(arguments):
    import estimator_learning

    budgets = arguments.budgets or [
        *estimator_learning.BUDGETS,
        estimator_learning.MOVING_BUDGET,
    ]
    results = []
    for name, split in estimator_learning.CONTESTANTS:
        progress(f"learning with {name} {split[0]}+{split[1]}")
        for moving, chosen in ((False, budgets[:-1]), (True, budgets[-1:])):
            results += estimator_learning.compete(name, split, moving, chosen)
    return results


def check_means(records):
    """Compares all z-scores with what chance allows (Bonferroni)."""
    import numpy as np
    import scipy.stats

    scores = np.abs(np.concatenate([r["z_scores"].ravel() for r in records]))
    scores = scores[np.isfinite(scores)]
    return {
        "tests": scores.size,
        "largest": float(scores.max()),
        "threshold": float(scipy.stats.norm.isf(FALSE_ALARM / 2 / scores.size)),
    }


def command(arguments):
    parts = ["python integration/benchmarks/estimators.py"]
    if arguments.learning:
        parts.append("--learning")
    parts.append(f"--draws {arguments.draws}")
    if arguments.splits:
        parts.append(f"--splits {' '.join(arguments.splits)}")
    return " ".join(parts)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
