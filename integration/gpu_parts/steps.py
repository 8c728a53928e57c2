"""Steps of `Bond`, and decoding on PyTorch."""

import dataclasses
import statistics
import time

import numpy as np

from gpu_parts.figures import figure
from gpu_parts.figures import peak_bytes
from gpu_parts.figures import rates
from gpu_parts.figures import skip
from gpu_parts.figures import wait
from gpu_parts.shapes import QUICK
from gpu_parts.shapes import SHAPES
from gpu_parts.shapes import build_policy

# The first one compiles.
STEPS = 4


def run_step(quick, shape=None):
    """Phases of a step of `Bond`, against the machine and against `plan`."""
    from keras_bond import backend

    shape = QUICK if quick else shape or SHAPES["step"]
    part = f"step of {shape.name}"
    _, memory = backend.device_memory()
    copied, product = rates(quick)
    bond, plan, how = make_bond(shape, memory)
    if not plan.fits:
        return skip(part, plan.problems[0])
    times = take_steps(bond, shape)
    for name in times[-1]:
        values = [phases.get(name, 0.0) for phases in times[1:]]
        figure(part, name, statistics.median(values), "s", compile=how)
    figure(part, "first step", times[0]["step"], "s")
    phases = times[-1]
    loops = [name for name in phases if name.startswith("rollout")]
    seconds = statistics.median(
        sum(phases[name] for name in loops) for phases in times[1:]
    )
    moved = decoding_bytes(bond, shape, len(loops))
    figure(part, "tokens drawn", shape.rows * shape.length / seconds, "1/s")
    share = moved / seconds / copied
    figure(part, "decoding, share of copied bytes", share, "1")
    learning = statistics.median(phases["learn"] for phases in times[1:])
    share = learning_flops(bond, shape) / learning / product
    figure(part, "learning, share of the product", share, "1")
    if (peak := peak_bytes()) is not None:
        figure(part, "peak", peak, "bytes", planned=plan.peak_bytes)
    else:
        figure(part, "planned peak", plan.peak_bytes, "bytes")


def run_step_1b(quick):
    run_step(quick, SHAPES["step_1b"])


def make_bond(shape, memory):
    """A trainer, the plan of it, and the arguments of `compile` that fit."""
    import keras

    import keras_bond

    policy = build_policy(shape)
    policy.backbone.enable_lora(8)

    class Timed(keras_bond.Bond):
        """The trainer with a clock at every stage."""

        def _stage(self, name, *arguments, **options):
            stage = super()._stage(name, *arguments, **options)

            def timed(*inputs):
                start = time.perf_counter()
                outputs = wait(stage(*inputs))
                phases[name] = time.perf_counter() - start
                return outputs

            return timed

    class Tokens(keras_bond.rewards.Reward):
        """A number of the tokens, which costs nothing."""

        name = "tokens"

        def score(self, samples):
            ids = samples.token_ids[:, shape.length :]
            return (ids % 97).mean(axis=1).astype("float32")

    phases = {}
    bond = Timed(
        policy,
        Tokens(),
        max_prompt_length=shape.length,
        max_completion_length=shape.length,
        num_policy_samples=shape.samples,
        num_anchor_samples=shape.samples,
        stop_token_ids=(),
        seed=0,
    )
    object.__setattr__(bond, "phases", phases)
    for how in choices(shape.prompts):
        bond.compile(keras.optimizers.Adam(1e-4), **how)
        given = {} if memory is None else {"device_memory": memory}
        plan = keras_bond.plan(bond, shape.prompts, **given)
        if plan.fits:
            break
    return bond, plan, how


def choices(prompts):
    """Arguments of `compile`, the fastest first."""
    yield {}
    parts = 1
    while parts <= prompts:
        yield {
            "rematerialize": True,
            "gradient_accumulation_steps": parts,
            "rollout_batch_size": prompts // min(parts, 4),
        }
        parts *= 2


def take_steps(bond, shape):
    """Takes some steps of `fit`.

    Returns:
        list of dict of seconds by phase, with `"step"` for all of it.
    """
    import keras

    import keras_bond

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            bond.phases.clear()
            self.start = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])
            taken = time.perf_counter() - self.start
            times.append({**bond.phases, "step": taken})

    times, generator = [], np.random.default_rng(0)
    ids = generator.integers(
        2, shape.vocabulary, (STEPS * shape.prompts, shape.length)
    )
    bond.fit(
        {"token_ids": ids.astype("int32")},
        batch_size=shape.prompts,
        verbose=0,
        callbacks=[keras_bond.callbacks.AnchorEMA(0.02), Clock()],
    )
    return times


def decoding_bytes(bond, shape, loops):
    """What the loops of a step must read: weights and cache, at each token."""
    from keras_bond.rollouts import sizes
    from keras_bond.rollouts.decoder import CacheBuilder

    weights = sizes.num_bytes(bond.policy.variables)
    # The cache is half full in the middle of the completions.
    filled = shape.length + shape.length // 2
    cache = CacheBuilder(bond.policy).num_bytes(shape.rows, filled)
    return shape.length * (loops * weights + cache)


def learning_flops(bond, shape):
    """Operations of forward and backward pass; frozen weights need no gradient.

    Attention counts over the whole row; what is computed twice counts once,
    and so does a prompt, which is read once for all of its samples.
    """
    kernels = sum(
        int(np.prod(v.shape))
        for block in bond.policy.backbone.transformer_layers
        for v in block.weights
        if len(v.shape) > 1 and "lora" not in v.path
    )
    attention = 2 * shape.layers * 4 * shape.head_dim * 2 * shape.length
    head = shape.vocabulary * shape.width
    per_token = kernels + attention
    products = (shape.prompts + shape.rows) * per_token + shape.rows * head
    return 2 * 2 * shape.length * products


def run_graph(quick):
    """The same completions in a plain loop, recorded, and as a CUDA graph."""
    import torch

    from keras_bond.backend import torch as torch_backend
    from keras_bond.backend import torch_graph

    shape = QUICK if quick else SHAPES["step"]
    tokens = dataclasses.replace(shape, prompts=8, length=32)
    bond, _, _ = make_bond(tokens, None)
    ids = np.random.default_rng(0).integers(2, shape.vocabulary, (8, 32))
    ways = {"eager": (10**9, False), "recorded": (2, False)}
    if torch.cuda.is_available():
        ways["CUDA graph"] = 2, True
    drawn = {}
    for name, way in ways.items():
        torch_backend.WORTH_RECORDING, torch_graph.USES_CUDA_GRAPHS = way
        for _ in range(2):
            start = time.perf_counter()
            drawn[name] = bond.generate({"token_ids": ids}, num_samples=4)
            wait(None)
            seconds = time.perf_counter() - start
        figure("graph", name, seconds / 32, "s/token")
        same = str(drawn[name]) == str(drawn["eager"])
        figure("graph", f"{name}: completions are equal", same, "equal")
