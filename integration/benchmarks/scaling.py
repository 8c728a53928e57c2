"""How the cost of a step grows with batch, lengths, samples and vocabulary.

    python integration/benchmarks/scaling.py [--backend jax] [--size 14M]
        [--sweeps batch prompt completion k vocabulary raggedness]
        [--modes full lora]
        [--rounds 5] [--output FOLDER]

Varies one number at a time around a base, which takes its turn in every round.
The sweep `raggedness` lets completions end, with lengths that are geometric
with a mean of a quarter of the limit. On JAX it also asks XLA what the learning
stage sets aside beside its arguments and results. Writes table.md, CSV files
and scaling.png.
"""

import argparse
import dataclasses
import itertools
import pathlib
import time

import speed_contest
import speed_report
import speed_results
from reports import progress
from reports import write_csv
from speed_shapes import SIZES
from speed_worker import BACKENDS

OUTPUT = pathlib.Path(__file__).resolve().parents[1] / "runs" / "scaling"
# Name: what it changes, and to what; the base comes first.
SWEEPS = {
    "batch": ("prompts", (8, 2, 4, 16, 32)),
    "prompt": ("prompt_length", (64, 16, 128, 256)),
    "completion": ("completion_length", (64, 16, 128, 256)),
    "k": ("anchor_samples", (2, 4, 8)),
    "vocabulary": ("vocabulary", (32_000, 65_536, 131_072, 262_144)),
    "raggedness": ("stop_share", (0.0, 4 / 128)),
}
QUICK_SWEEPS = {
    **SWEEPS,
    "batch": ("prompts", (2, 4)),
    "prompt": ("prompt_length", (4, 8)),
    "completion": ("completion_length", (4, 8)),
    "k": ("anchor_samples", (2, 3)),
    "vocabulary": ("vocabulary", (256, 512)),
}
# As large as learning has to be to sort the rows by length.
RAGGED = {"prompts": 8, "completion_length": 128}
QUICK = {"prompts": 2, "prompt_length": 4, "completion_length": 4}
WARM_UP = 2
# One step that notes what the stages are called with.
PROFILES = 1


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", choices=BACKENDS, default="jax")
    parser.add_argument("--size", choices=SIZES, default="14M")
    parser.add_argument(
        "--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS)
    )
    parser.add_argument(
        "--modes", nargs="+", choices=("full", "lora"), default=["full"]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="a shape for tests, 2 rounds"
    )
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.size, arguments.rounds = "0.02M", 2
    return arguments


def main(argv=None):
    """Runs the benchmark; returns False where a shape could not be run."""
    arguments = parse_arguments(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()
    sweeps = [
        run_sweep(arguments, name, mode)
        for name, mode in itertools.product(arguments.sweeps, arguments.modes)
    ]
    facts = speed_report.facts(
        "scaling.py",
        backend=arguments.backend,
        size=arguments.size,
        sweeps=arguments.sweeps,
        modes=arguments.modes,
        rounds=arguments.rounds,
    )
    table = speed_report.report_scaling(sweeps, facts)
    (arguments.output / "table.md").write_text(table)
    write_csv(arguments.output / "steps.csv", speed_results.step_rows(sweeps))
    write_csv(
        arguments.output / "memory.csv", speed_results.memory_rows(sweeps)
    )
    speed_report.plot_scaling(sweeps, arguments.output / "scaling.png")
    print(table)
    print(f"{time.perf_counter() - clock:.0f} s, {arguments.output}")
    return not any(c.failure for sweep in sweeps for c in sweep.contenders)


def run_sweep(arguments, name, mode):
    """Races all values of one number.

    Returns:
        a `speed_results.Result` whose contenders are the values.
    """
    field, values = (QUICK_SWEEPS if arguments.quick else SWEEPS)[name]
    progress(f"{name}, {mode}")
    base = SIZES[arguments.size].with_mode(mode)
    if arguments.quick:
        base = dataclasses.replace(base, **QUICK)
    if name == "k":
        base = dataclasses.replace(base, trainer="bond")
    if name == "raggedness":
        base = dataclasses.replace(base, **RAGGED)
    base = dataclasses.replace(base, **{field: values[0]})
    workers = [speed_contest.Worker("machine", base)]
    for value in values:
        shape = dataclasses.replace(base, **{field: value})
        workers.append(
            speed_contest.Worker(arguments.backend, shape, label=f"{value}")
        )
    records = speed_contest.hold(
        workers,
        arguments.rounds,
        WARM_UP,
        arguments.rounds if name == "raggedness" else PROFILES,
        extras=("memory",),
        progress=progress,
    )
    return speed_results.summarize(f"{name}, {mode}", base, records)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
