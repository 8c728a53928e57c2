"""What this machine can do: products of matrices, and memory read and copied.

Rates are the best of several tries, and are measured anew in each round.
"""

import time

import jax
import jax.numpy as jnp

MATRIX = 2048
# Far larger than the caches.
NUMBERS = 2**26
TRIES = 4


def run(shape, channel):
    """Serves the contest: a step of it measures the rates.

    Args:
        shape: unused.
        channel: a `speed_worker.Channel`.
    """
    del shape
    bench = Bench()
    bench.measure()
    channel.ready()
    while True:
        channel.begin()
        channel.end(**bench.measure())


class Bench:
    """Arrays and compiled functions, made once."""

    def __init__(self):
        self.matrix = jnp.ones((MATRIX, MATRIX))
        self.numbers = jnp.ones((NUMBERS,))
        self.multiply = jax.jit(jnp.matmul)
        self.read = jax.jit(jnp.sum)
        # The buffer is reused: fresh pages would be measured otherwise.
        self.copy = jax.jit(lambda x: x + 1.0, donate_argnums=0)

    def measure(self):
        """Returns `flops`, `read_bytes` and `copy_bytes` a second.

        `bytes`, which the roofline uses, is the larger of the last two.
        """
        size = self.numbers.nbytes
        read = size / _best(lambda: self.read(self.numbers))
        copied = 2 * size / _best(self._copy)
        return {
            "flops": 2
            * MATRIX**3
            / _best(lambda: self.multiply(self.matrix, self.matrix)),
            "read_bytes": read,
            "copy_bytes": copied,
            "bytes": max(read, copied),
        }

    def _copy(self):
        self.numbers = self.copy(self.numbers)
        return self.numbers


def _best(function):
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return min(times)
