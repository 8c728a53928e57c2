"""What a compiler keeps of a forward pass for the backward pass.

The numbers were fitted, not derived: to `memory_analysis()` of the learning
pass as XLA compiles it for a CPU and, ahead of time, for a TPU v5e, over shapes
that differ in one thing each; and to the tensors that PyTorch's graph saves.
`tests/planning/test_activations.py` holds the formula to the first and last.
"""

import dataclasses

from keras_bond import backend


@dataclasses.dataclass(frozen=True)
class Compiler:
    """Arrays a block has in memory for each token, of three sizes.

    A triple counts those of the network's width, of what the block's kernels
    take or give, and of attention scores, `heads x length`.

    Attributes:
        name: str.
        kept: triple of float. What the backward pass finds of a block.
        working_share: float. What it makes beside, as a share of that.
        passing: triple of float. What a pass without a gradient has at once.
        rematerializes: bool. Whether `rematerialize` saves anything.
    """

    name: str
    kept: tuple
    working_share: float
    passing: tuple
    rematerializes: bool = True


# It merges what is computed again with what was computed before, which undoes
# `rematerialize`.
XLA_ON_CPU = Compiler(
    "XLA on a CPU", (6.0, 1.8, 2.5), 0.5, (2.0, 0.5, 2.4), rematerializes=False
)
XLA = Compiler("XLA", (3.0, 0.8, 1.8), 0.5, (2.0, 0.5, 2.0))
PYTORCH = Compiler("PyTorch", (8.0, 1.5, 2.0), 0.5, (2.0, 0.5, 3.0))


def compiler_for(on_cpu):
    """Chooses by the backend of the process.

    Args:
        on_cpu: bool. Whether it runs on a CPU.
    """
    if backend.name == "torch":
        return PYTORCH
    return XLA_ON_CPU if on_cpu else XLA
