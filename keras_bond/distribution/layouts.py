"""Which axis of each of Gemma's variables may be split over devices.

Heads and the hidden units of the feed-forward network are split, as Shoeybi
et al. do (Megatron-LM, arXiv 1909.08053): then a block talks twice, once
behind its attention and once behind its feed-forward network. Adapters go
along with their kernel.
"""

import re

# Path of a variable, and its axes in the order of preference: the first that
# the number of devices divides is split.
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
    """Chooses the axis of a variable that is split.

    Args:
        path: str, as `variable.path`.
        shape: tuple of int.
        num_devices: int. Parts into which the axis must divide.

    Returns:
        int, or `None` for a variable that every device has all of.
    """
    for pattern, axes in SPLIT_AXES:
        if re.search(f"(^|/){pattern}$", path):
            fitting = (axis for axis in axes if shape[axis] % num_devices == 0)
            return next(fitting, None)
    return None
