"""Will it fit my TPU? Compiles a J-BOND step for one, on any machine.

    pip install libtpu
    python integration/tpu_compile.py [--preset gemma3_instruct_1b]
        [--topology v5e:1x1] [--mesh 2x4] [--prompts 8]
        [--prompt-length 256] [--completion-length 256] [--lora 8]
        [--rollout-batch-size 8] [--accumulate 1] [--no-rematerialize]
        [--layers 2 6]

Compiles all stages of the step ahead of time with the compiler of the chip,
from weights that have shapes only, and prints what it says: memory against
that of the chip, operations, bytes moved, talk between chips, and the time
that a step takes at the chip's rates. Ends with exit status 1 if it does not
fit. A billion parameters take some minutes of compilation and a few GB; with
`--layers` two small numbers of blocks are compiled and the memory of all is
extrapolated, for memory grows with each block alike. No weights are needed:
the configurations of some presets are built in, others are downloaded.
"""

import argparse
import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from tpu import chips as chips_lib

GIB = 2**30


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--preset", default="gemma3_instruct_1b")
    add("--topology", default="v5e:1x1", help="chip and chips, as v5e:2x4")
    add("--mesh", help="rows x weights, as 2x4; default: all for the rows")
    add("--prompts", type=int, default=8, help="a step, over all chips")
    add("--prompt-length", type=int, default=256, help="tokens")
    add("--completion-length", type=int, default=256, help="tokens")
    add("--lora", type=int, default=8, help="rank; 0 trains all weights")
    add("--dtype", default="bfloat16", help="of the weights")
    add("--rollout-batch-size", type=int, help="prompts")
    add("--accumulate", type=int, default=1, help="parts of the learning")
    add("--no-rematerialize", action="store_true")
    add("--layers", type=int, nargs=2, help="blocks to extrapolate from")
    return parser.parse_args(argv)


def mesh_of(arguments, num_chips):
    """`(rows, weights)`, or `None` for one chip.

    Raises:
        ValueError: if the mesh is not made of all chips, or does not divide
            the batch.
    """
    if num_chips == 1 and arguments.mesh is None:
        return None
    text = arguments.mesh or f"{num_chips}x1"
    shape = tuple(int(n) for n in text.split("x"))
    if len(shape) != 2 or shape[0] * shape[1] != num_chips:
        raise ValueError(
            "`--mesh` must be two numbers whose product is the number of "
            f"chips, such as {num_chips}x1. Received: --mesh {text}, "
            f"{num_chips} chips"
        )
    if arguments.prompts % shape[0]:
        raise ValueError(
            "`--prompts` must be a multiple of the mesh's first number. "
            f"Received: --prompts {arguments.prompts}, --mesh {text}"
        )
    return shape


def compile_all(arguments, chips, num_layers, report):
    """Compiles all stages of a policy with so many blocks.

    Returns:
        the trainer and the list of `Stage`.
    """
    from tpu import shapes
    from tpu import stages

    trainer = stages.abstract_trainer(
        lambda: shapes.build(
            arguments.preset, num_layers, arguments.dtype, arguments.lora
        ),
        mesh_of(arguments, len(chips)),
        chips,
        dict(
            rollout_batch_size=arguments.rollout_batch_size,
            gradient_accumulation_steps=arguments.accumulate,
            rematerialize=not arguments.no_rematerialize,
        ),
        max_prompt_length=arguments.prompt_length,
        max_completion_length=arguments.completion_length,
        stop_token_ids=(1, 106),
        seed=0,
    )
    found = []

    def keep(stage):
        found.append(stage)
        report(stage)

    stages.compile_step(trainer, arguments.prompts, chips, keep)
    return trainer, found


def extrapolated(few, many, layers, num_layers):
    """The stages of `num_layers` blocks, from those of two other numbers."""
    import dataclasses

    def line(a, b):
        slope = (b - a) / (layers[1] - layers[0])
        return a + slope * (num_layers - layers[0])

    numbers = ("arguments", "temporary", "peak", "flops", "accessed")
    return [
        dataclasses.replace(
            b,
            **{n: line(getattr(a, n), getattr(b, n)) for n in numbers},
            collectives={
                k: round(line(a.collectives.get(k, 0), v))
                for k, v in b.collectives.items()
            },
            seconds=a.seconds + b.seconds,
        )
        for a, b in zip(few, many)
    ]


def show(stage):
    collectives = ", ".join(
        f"{n or ''} {k}".strip() for k, n in stage.collectives.items()
    )
    print(
        f"| {stage.name} | {stage.arguments / GIB:.3g} | "
        f"{stage.temporary / GIB:.3g} | {stage.peak / GIB:.3g} | "
        f"{stage.flops / 1e12:.3g} | {stage.accessed / 1e9:.3g} | "
        f"{collectives or 'none'} | {stage.seconds:.0f} |",
        flush=True,
    )


def show_header():
    print(
        "| stage | arguments [GiB] | temporary [GiB] | peak [GiB] | TFLOP | "
        "GB moved | collectives | compiled [s] |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |"
    )


def main(argv=None):
    arguments = parse_arguments(argv)
    chips_lib.prepare()
    chips = chips_lib.devices(arguments.topology)
    mesh_of(arguments, len(chips))
    chip = chips_lib.CHIPS[arguments.topology.partition(":")[0]]
    from tpu import shapes
    from tpu import times

    words = sys.argv[1:] if argv is None else argv
    print(f"`{' '.join(['python integration/tpu_compile.py', *words])}`\n")
    show_header()
    if arguments.layers and arguments.preset not in shapes.PRESETS:
        raise ValueError(
            "`--layers` needs a preset that is built in: one of "
            f"{sorted(shapes.PRESETS)}. Received: --preset {arguments.preset}"
        )
    if arguments.layers:
        whole = shapes.PRESETS[arguments.preset]["num_layers"]
        results = [
            compile_all(arguments, chips, n, lambda _: None)
            for n in arguments.layers
        ]
        found = extrapolated(
            results[0][1], results[1][1], arguments.layers, whole
        )
        for stage in found:
            show(stage)
        print(f"\nExtrapolated to {whole} blocks from {arguments.layers}.")
    else:
        trainer, found = compile_all(arguments, chips, None, show)
        print("\n" + times.least(trainer, arguments, chip, len(chips)))
    peak = max(stage.peak for stage in found)
    fits = peak <= chip.memory
    print(
        f"\nPeak {peak / GIB:.3g} GiB of {chip.memory / GIB:.0f} GiB a chip: "
        f"{'fits' if fits else 'DOES NOT FIT'}."
    )
    return fits


if __name__ == "__main__":
    sys.exit(not main())
