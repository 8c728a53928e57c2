"""Counter-based uniform random numbers.

A number depends only on (seed, purpose, prompt, sample, position), not on the
batch size, the order of calls or the backend. A prompt therefore gets the same
completions in one batch of 8 as in two accumulated batches of 4, on JAX,
TensorFlow and PyTorch, and a resumed run continues with the numbers that the
interrupted run would have used.
"""

import dataclasses

from keras import ops

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA

# Part of the key: streams of different purposes are independent.
PURPOSES = (
    "policy",
    "anchor",
    "ties",
    "evaluate policy",
    "evaluate anchor",
    "evaluate ties",
    "generate",
)
MAX_POSITIONS = 2**20
MAX_SAMPLES = 2**11


def threefry2x32(key, counter):
    """Threefry-2x32 with 20 rounds, a counter-based random bit generator.

    See Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    It is computed in int32, which wraps around in the same way on every
    backend. Unsigned integers are not fully supported by PyTorch, and 64-bit
    integers are disabled in JAX by default.

    Args:
        key: pair of int32 tensors.
        counter: pair of int32 tensors; all four broadcast.

    Returns:
        pair of int32 tensors of random bits.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x = x + y
            y = _rotate_left(y, rotation) ^ x
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + (block + 1)
    return x, y


def _rotate_left(x, bits):
    # Shifting a negative int32 to the right copies the sign: mask the copies.
    low = ops.bitwise_and(ops.right_shift(x, 32 - bits), (1 << bits) - 1)
    return ops.bitwise_or(ops.left_shift(x, bits), low)


def uniform(seed, purpose, prompt_numbers, num_samples, num_positions):
    """Returns the random numbers of `num_samples` completions per prompt.

    Args:
        seed: int in [0, 2³¹). Seed of the run.
        purpose: str, one of `PURPOSES`.
        prompt_numbers: int32 tensor `(batch,)`. Number of each prompt in the
            run.
        num_samples: int, at most 2¹¹. Completions per prompt.
        num_positions: int, at most 2²⁰. Numbers per completion.

    Returns:
        float32 tensor `(batch, num_samples, num_positions)` in [0, 1), with 24
        random bits each.
    """
    prompts = ops.reshape(ops.cast(prompt_numbers, "int32"), (-1, 1, 1))
    samples = ops.reshape(ops.arange(num_samples, dtype="int32"), (1, -1, 1))
    positions = ops.reshape(
        ops.arange(num_positions, dtype="int32"), (1, 1, -1)
    )
    within_prompt = samples * MAX_POSITIONS + positions
    zeros = ops.zeros_like(prompts) + ops.zeros_like(within_prompt)
    key = (zeros + seed, zeros + PURPOSES.index(purpose))
    bits, _ = threefry2x32(key, (zeros + prompts, zeros + within_prompt))
    bits = ops.bitwise_and(ops.right_shift(bits, 8), 2**24 - 1)
    return ops.cast(bits, "float32") * (1.0 / 2**24)


@dataclasses.dataclass(frozen=True)
class Stream:
    """The random numbers of a batch of prompts in one mode of use.

    Attributes:
        seed: int or int32 scalar tensor in [0, 2³¹). Seed of the run.
        mode: `"train"`, `"evaluate"` or `"generate"`. The numbers of
            different modes are independent.
        prompt_numbers: int32 tensor `(batch,)`. Number of each prompt in the
            run.
    """

    seed: object
    mode: str
    prompt_numbers: object

    def uniforms(self, purpose, num_samples, num_positions):
        """Uniform numbers in [0, 1), see `uniform`.

        Args:
            purpose: str. `"policy"` and `"anchor"` for tokens, `"ties"` for
                tie-breakers.
            num_samples: int. Completions per prompt.
            num_positions: int. Numbers per completion.

        Returns:
            float32 tensor `(batch, num_samples, num_positions)`.
        """
        name = {
            "train": purpose,
            "evaluate": f"evaluate {purpose}",
            "generate": "generate",
        }[self.mode]
        return uniform(
            self.seed, name, self.prompt_numbers, num_samples, num_positions
        )
