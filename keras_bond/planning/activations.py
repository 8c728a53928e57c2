"""Bytes of a network's activations: a plain estimate.

A block of a transformer makes, for each token, some arrays of the network's
width (norms and sums), some of what its kernels take or give (queries, keys,
values, gates), and some of `heads x length` attention scores. How many of each
depends on the compiler. The counts were fitted to `memory_analysis()` of XLA
for a CPU and for a TPU v5e, and to the tensors that PyTorch's graph saves.
"""

import dataclasses
import math

from keras_bond import backend
from keras_bond.rollouts import network
from keras_bond.rollouts import sizes

# Arrays of the three kinds that a block keeps for the gradient, and that a
# pass without a gradient has at once.
KEPT = {
    "XLA on a CPU": (6.0, 1.8, 2.5),
    "XLA": (3.0, 0.8, 1.8),
    "PyTorch": (8.0, 1.5, 2.0),
}
PASSING = (2.0, 0.5, 2.5)
# What the backward pass makes of a block, as a share of what was kept.
WORKING_SHARE = 0.5


def compiler_for(on_cpu):
    """Name of the compiler of this process, for a CPU or an accelerator."""
    if backend.name == "torch":
        return "PyTorch"
    return "XLA on a CPU" if on_cpu else "XLA"


@dataclasses.dataclass(frozen=True)
class Network:
    """The numbers of a backbone that its activations depend on.

    `kernel_values` are the values per token that the kernels of a block take
    or give, apart from the hidden states. `scale` is what a compiler said of
    the backward pass, as a share of this estimate.
    """

    width: int
    num_layers: int
    kernel_values: float
    num_heads: int
    itemsize: int
    compiler: str
    scale: float = 1.0

    @classmethod
    def of(cls, policy, compiler):
        """Reads them off a `keras_hub.models.CausalLM`."""
        backbone = policy.backbone
        blocks = network.blocks(backbone)
        width = network.embedding(backbone).output_dim
        kernels = [
            variable
            for block in blocks
            for variable in block.variables
            if len(variable.shape) >= 2 and "lora" not in variable.path
        ]
        names = ("num_query_heads", "num_attention_heads", "num_heads")
        heads = [getattr(backbone, name, None) or 0 for name in names]
        return cls(
            width=width,
            num_layers=len(blocks),
            kernel_values=sizes.num_values(kernels) / width / len(blocks),
            num_heads=max(heads),
            itemsize=sizes.itemsize(backbone.compute_dtype),
            compiler=compiler,
        )

    @property
    def rematerializes(self):
        """Whether `rematerialize` saves anything.

        XLA for a CPU undoes it: what is computed again equals what was kept.
        """
        return self.compiler != "XLA on a CPU"

    def passing_bytes(self, reads):
        """Activations of a pass without a gradient: those of one block.

        Args:
            reads: list of `(rows, tokens, context)`: what is read in parallel,
                and how many tokens of a row attention sees.
        """
        return self._block(PASSING, reads)

    def kept_bytes(self, reads, rematerialize):
        """What the forward pass keeps for the gradient."""
        block = self.scale * self._block(KEPT[self.compiler], reads)
        if rematerialize:
            # The inputs of every block.
            tokens = sum(rows * length for rows, length, _ in reads)
            block = tokens * self.width * self.itemsize
        return math.ceil(self.num_layers * block)

    def working_bytes(self, reads, rematerialize):
        """What the backward pass adds to that, for one block at a time."""
        largest = max(self._block(KEPT[self.compiler], [x]) for x in reads)
        block = self.scale * largest
        return math.ceil((WORKING_SHARE + (1 if rematerialize else 0)) * block)

    def _block(self, arrays, reads):
        """Norms and softmax are computed in float32 whatever the dtype."""
        widths, kernels, scores = arrays
        per_token = (
            4 * widths * self.width
            + self.itemsize * kernels * self.kernel_values
        )
        per_pair = (4 + self.itemsize) / 2 * scores * self.num_heads
        return math.ceil(
            sum(
                rows * length * (per_token + per_pair * context)
                for rows, length, context in reads
            )
        )
