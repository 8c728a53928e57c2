"""Copies of a key-value cache in a decode loop compiled for a TPU.

    python integration/tpu/decode_copies.py gemma3
    python integration/tpu/decode_copies.py llama3

Compiles the rollout of a tiny network ahead of time and prints each instruction
of the loop's body that writes a tensor of the shape of a cache, other than the
update in place. For Llama, whose blocks share one tensor, XLA still changes the
layout of some keys.
"""

import pathlib
import re
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from tpu import chips as chips_lib

PROMPTS, LENGTHS = 8, {"max_prompt_length": 16, "max_completion_length": 48}
# What gives another name to a cache, updates it in place, or repeats keys for
# the heads that share them, as KerasHub's attention does.
HARMLESS = (
    "parameter",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "broadcast",
    "dynamic-update-slice",
)


def build(family):
    """A policy with LoRA adapters, of one of two layouts of a cache."""
    import keras_hub

    from tpu import shapes

    if family == "gemma3":
        return shapes.build("tiny", 2, lora_rank=2)
    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=512,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
        dtype="bfloat16",
    )
    backbone.enable_lora(2)
    return keras_hub.models.Llama3CausalLM(backbone=backbone)


def compile_rollout(family):
    """Returns the optimized program of a rollout, and the rows of its cache."""
    import jax

    from tpu import stages

    chips = chips_lib.devices("v5e:1x1")
    trainer = stages.abstract_trainer(
        lambda: build(family), None, chips, {}, stop_token_ids=(1,), **LENGTHS
    )
    counts = {
        "policy": trainer.num_policy_samples,
        "anchor": trainer.num_anchor_samples,
    }

    def draw(inputs):
        stream = trainer._stream(inputs, training=True)
        return trainer.rollout.draw(inputs, counts, stream)

    values = [
        [variable.value for variable in variables]
        for variables in (
            trainer.trainable_variables,
            trainer.non_trainable_variables,
        )
    ]
    inputs = stages._prompts(trainer, PROMPTS, chips)
    with stages.seen_as(chips):
        lowered = jax.jit(trainer._stateless(draw)).lower(*values, inputs)
    return lowered.compile().as_text(), PROMPTS * sum(counts.values())


def copies(program, rows):
    """Lists what writes a whole cache in the bodies of loops.

    Args:
        program: str. The optimized program.
        rows: int. Rows of the cache.

    Returns:
        list of str, instructions other than updates in place.
    """
    blocks = {}
    for line in program.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = line.removeprefix("ENTRY ").lstrip("%").split(" ")[0]
            blocks[name] = []
        elif line.startswith(" "):
            blocks[name].append(line.strip())
    updates = {
        name
        for name, lines in blocks.items()
        if any(re.match(r"ROOT .* dynamic-update-slice\(", x) for x in lines)
    }
    length = str(sum(LENGTHS.values()))
    found = []
    for body in set(re.findall(r"body=%?([\w.\-]+)", program)) & set(blocks):
        for line in blocks[body]:
            written, kind = re.match(
                r"(?:ROOT )?\S+ = (.*?) ([\w\-]+)\(", line
            ).groups()
            called = re.findall(r"calls=%?([\w.\-]+)", line)
            if kind in HARMLESS or updates & set(called):
                continue
            shapes = re.findall(r"bf16\[([\d,]*)\]", written)
            sizes = [shape.split(",") for shape in shapes]
            if any(
                len(size) > 3 and size[0] == str(rows) and length in size
                for size in sizes
            ):
                found.append(line)
    return found


def main(family):
    chips_lib.prepare()
    program, rows = compile_rollout(family)
    assert "dynamic-update-slice(" in program, "no cache is updated"
    found = copies(program, rows)
    for line in found:
        print(line[:160])
    print(f"{family}: {len(found)} copies of a cache per token")


if __name__ == "__main__":
    main(sys.argv[1])
