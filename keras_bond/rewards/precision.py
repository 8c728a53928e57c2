"""What a device needs of float64 rewards, in numbers that float32 can hold.

The host scores in float64, the device computes in float32. There, 1e6 and
1e6 + 0.01 are one number; so the host decides order and ties, and hands over
what the rounding of the rewards took away.
"""

import numpy as np


def for_device(rewards):
    """Turns float64 rewards into float32 arrays without loss.

    Args:
        rewards: finite float64 array `(prompts, samples)`.

    Returns:
        dict of float32 arrays `(prompts, samples)`: `rewards`, the rounded
        rewards; `reward_residuals`, what is missing from them; and `ranks`,
        see `dense_ranks`.
    """
    rounded = rewards.astype("float32")
    return {
        "rewards": rounded,
        "reward_residuals": (rewards - rounded).astype("float32"),
        "ranks": dense_ranks(rewards),
    }


def dense_ranks(rewards):
    """Ranks the samples of each prompt, 0 for the worst; ties share a rank.

    Args:
        rewards: finite float64 array `(prompts, samples)`.

    Returns:
        float32 array `(prompts, samples)`.
    """
    ranks = [np.unique(row, return_inverse=True)[1] for row in rewards]
    return np.reshape(ranks, rewards.shape).astype("float32")
