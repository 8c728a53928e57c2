"""Sharded axes of Gemma's variables.

Attention heads and the hidden units of the feed-forward network are sharded as
in Megatron-LM (Shoeybi et al., arXiv 1909.08053), so that a block needs two
all-reduce operations: one after its attention and one after its feed-forward
network. LoRA adapters are sharded like their kernels.
"""

import re

# Path of a variable, and its axes in order of preference: the first axis that
# is divisible by the number of devices is sharded.
SPLIT_AXES = (
    # (vocabulary, width)
    (r"token_embedding/embeddings", (0, 1)),
    # (heads, width, head width); Gemma 3 1B has a single key-value head.
    (r"attention/(query|key|value)/(kernel|lora_kernel_a)", (0, 1)),
    # (heads, head width, width)
    (r"attention/attention_output/kernel", (0, 2)),
    (r"attention/attention_output/lora_kernel_a", (0,)),
    # (width, hidden), and the adapter's (rank, hidden)
    (r"ffw_gating(_2)?/(kernel|lora_kernel_b)", (1,)),
    # (hidden, width), and the adapter's (hidden, rank)
    (r"ffw_linear/(kernel|lora_kernel_a)", (0,)),
)


def split_axis(path, shape, num_devices):
    """Chooses the axis along which a variable is sharded.

    Args:
        path: str, as `variable.path`.
        shape: tuple of int.
        num_devices: int. Number of shards, which must divide the axis.

    Returns:
        int, or `None` for a variable that is replicated on every device.
    """
    for pattern, axes in SPLIT_AXES:
        if re.search(f"(^|/){pattern}$", path):
            fitting = (axis for axis in axes if shape[axis] % num_devices == 0)
            return next(fitting, None)
    return None
