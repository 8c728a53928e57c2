"""Figures as lines of JSON, and how they are measured."""

import json
import os
import time


def figure(part, name, value, unit, **more):
    """Prints one figure of a part."""
    backend = os.environ["KERAS_BACKEND"]
    facts = {"part": part, "backend": backend, "figure": name}
    facts = {**facts, "value": value, "unit": unit, **more}
    print(json.dumps(facts), flush=True)


def skip(part, reason):
    backend = os.environ["KERAS_BACKEND"]
    facts = {"part": part, "backend": backend, "skipped": reason}
    print(json.dumps(facts), flush=True)


def wait(outputs):
    """Returns `outputs` when the device is done with them."""
    if os.environ["KERAS_BACKEND"] == "jax":
        import jax

        return jax.block_until_ready(outputs)
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return outputs


def best_seconds(function, tries=5):
    """The shortest of some calls, after one that compiles."""
    wait(function())
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        wait(function())
        times.append(time.perf_counter() - start)
    return min(times)


def rates(quick):
    """Bytes per second of a copy, and FLOP per second of a product."""
    size, numbers = (256, 2**20) if quick else (8192, 2**29)
    if os.environ["KERAS_BACKEND"] == "jax":
        import jax
        import jax.numpy as jnp

        matrix = jnp.ones((size, size), "bfloat16")
        vector = jnp.ones((numbers,), "bfloat16")
        multiply = jax.jit(jnp.matmul)
        copy = jax.jit(lambda x: x + 1)
    else:
        import torch

        place = "cuda" if torch.cuda.is_available() else "cpu"
        matrix = torch.ones(size, size, dtype=torch.bfloat16, device=place)
        vector = torch.ones(numbers, dtype=torch.bfloat16, device=place)
        multiply = torch.matmul

        def copy(x):
            return x + 1

    copied = 2 * 2 * numbers / best_seconds(lambda: copy(vector))
    product = 2 * size**3 / best_seconds(lambda: multiply(matrix, matrix))
    return copied, product


def peak_bytes():
    """The most memory that the device held so far, if it tells."""
    if os.environ["KERAS_BACKEND"] == "jax":
        import jax

        stats = jax.local_devices()[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use")
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated()
