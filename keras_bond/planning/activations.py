"""How many bytes a network's activations take: a formula, not a measurement.

A block of a transformer makes, for each token, some arrays of the network's
width (norms and sums), some of what its kernels take or give (queries, keys,
values, gates), and some of `heads x length` attention scores. How many of each
are kept for the backward pass depends on who compiles.
"""

import dataclasses
import math

from keras_bond.planning.compilers import Compiler
from keras_bond.rollouts import sizes


@dataclasses.dataclass(frozen=True)
class Network:
    """The numbers of a backbone that its activations depend on.

    Attributes:
        width: int. Of the hidden states.
        num_layers: int. Blocks.
        kernel_values: float. Values a token that the kernels of a block take
            or give beside the hidden states: the values of the kernels,
            divided by `width`.
        num_heads: int. Query heads; 0 if the backbone does not tell.
        itemsize: int. Bytes of a value that is computed with.
        compiler: a `Compiler`.
    """

    width: int
    num_layers: int
    kernel_values: float
    num_heads: int
    itemsize: int
    compiler: Compiler

    @classmethod
    def of(cls, policy, compiler):
        """Reads them off a `keras_hub.models.CausalLM`."""
        backbone = policy.backbone
        blocks = backbone.transformer_layers
        width = backbone.token_embedding.output_dim
        kernels = [v for block in blocks for v in block.variables if _is(v)]
        heads = ("num_query_heads", "num_heads")
        found = [getattr(backbone, name, None) for name in heads]
        return cls(
            width=width,
            num_layers=len(blocks),
            kernel_values=sizes.num_values(kernels) / width / len(blocks),
            num_heads=next((n for n in found if n), 0),
            itemsize=sizes.itemsize(backbone.compute_dtype),
            compiler=compiler,
        )

    def _block(self, factors, rows, length):
        """Bytes of one block for `rows` of `length` tokens.

        Norms and softmax are computed in float32 whatever the dtype.
        """
        widths, kernels, scores = factors
        per_token = (
            4 * widths * self.width
            + self.itemsize * kernels * self.kernel_values
            + (4 + self.itemsize) / 2 * scores * self.num_heads * length
        )
        return math.ceil(rows * length * per_token)

    def passing_bytes(self, rows, length):
        """Activations of a pass without a gradient: those of one block."""
        return self._block(self.compiler.passing, rows, length)

    def kept_bytes(self, rows, length, rematerialize):
        """What the forward pass keeps for the gradient.

        With `rematerialize` that is the inputs of every block.
        """
        if rematerialize:
            block = rows * length * self.width * self.itemsize
        else:
            block = self._block(self.compiler.kept, rows, length)
        return self.num_layers * block

    def working_bytes(self, rows, length, rematerialize):
        """What the backward pass needs beside, for one block at a time.

        With `rematerialize` it first makes again what was not kept.
        """
        share = self.compiler.working_share + (1 if rematerialize else 0)
        block = self._block(self.compiler.kept, rows, length)
        return math.ceil(share * block)


def _is(variable):
    """Whether a variable is a kernel of a block, and not an adapter."""
    return len(variable.shape) >= 2 and "lora" not in variable.path
