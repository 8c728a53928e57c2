"""Reproduces the claims of the BOND paper's figures at small scale.

    python examples/paper_figures.py [--figures 2 5] [--seeds 4] [--quick]

Trains a tiny Gemma 3 with every setting that figures 2 (and 10), 4, 5, 6, 7, 8
and 9 of BOND (Sessa et al., ICLR 2025, arXiv 2407.14622) compare, where all
completions can be listed: rewards, quantiles and divergences are exact, only
training is random. Writes one picture a figure, all measurements as `runs.csv`,
and `table.md`, which says of each claim whether it held here. The settings
stand in `paper_runs.py`, the criteria in `paper_claims.py` and
`paper_verdicts.py`.
"""

import argparse
import pathlib
import time

import demo

HERE = pathlib.Path(__file__).resolve().parent
FIGURES = (2, 4, 5, 6, 7, 8, 9)


def parse_arguments(arguments=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--figures", type=int, nargs="+", choices=FIGURES, default=FIGURES
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument(
        "--quick", action="store_true", help="a few steps, to see it run"
    )
    backends = ("jax", "tensorflow", "torch")
    parser.add_argument("--backend", choices=backends, default="jax")
    default = HERE / "runs" / "paper_figures"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    return parser.parse_args(arguments)


def main(arguments):
    """Trains, decides, draws.

    Args:
        arguments: see `parse_arguments`.

    Returns:
        list of `paper_verdicts.Verdict`.
    """
    import paper_claims
    import paper_plots
    import paper_runs
    import paper_verdicts

    started = time.time()
    scale = paper_runs.Scale(seeds=arguments.seeds)
    if arguments.quick:
        scale = paper_runs.Scale(10, 10, measurements=5, seeds=arguments.seeds)
    shown = [name for i in arguments.figures for name in paper_runs.SHOWN[i]]
    curves = paper_runs.train_all(dict.fromkeys(shown), scale)
    verdicts = paper_claims.verdicts_of(arguments.figures, curves)

    arguments.output.mkdir(parents=True, exist_ok=True)
    paper_runs.write_csv(curves, arguments.output / "runs.csv")
    (arguments.output / "table.md").write_text(paper_verdicts.table(verdicts))
    for number in arguments.figures:
        file = arguments.output / f"figure_{number}.png"
        paper_plots.draw(number, curves, file)
    print(paper_verdicts.table(verdicts))
    print(
        f"Wrote table.md, runs.csv and {len(arguments.figures)} pictures to "
        f"{arguments.output} after {time.time() - started:.0f} s."
    )
    return verdicts


if __name__ == "__main__":
    arguments = parse_arguments()
    demo.set_backend(arguments.backend)
    main(arguments)
