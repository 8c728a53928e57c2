"""Estimators of the gradient of `KL(π ‖ π_anchor)` of token sequences.

The policy is a table: the logits of a token depend on the token before, at all
positions alike, as the weights of a network are shared by them. Its sequence
KL, and hence the gradient, is a finite recursion.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from estimator_gradients import make_sampler
from estimator_gradients import measure
from keras import ops

from keras_bond import formulas

PROMPTS, VOCABULARY = 16, 8
# Tokens, and KL of the policy to the anchor in nats per sequence: 0.19 is that
# of Best-of-2, 0.64 of Best-of-4.
SETTINGS = ((16, 0.05), (16, 0.19), (16, 0.64), (64, 0.19))
POLICY_SAMPLES = (1, 4)
NAMES = (
    "log_ratio",
    "centered_log_ratio, batch",
    "centered_log_ratio, prompt",
    "centered_log_ratio, mixed",
    "full_vocabulary",
)


def make_tables(length, kl, seed=0):
    """Logits of policy and anchor `(prompts, before, token)`."""
    generator = np.random.default_rng(seed)
    shape = PROMPTS, VOCABULARY, VOCABULARY
    anchor = generator.normal(size=shape).astype("float32")
    step = generator.normal(size=shape).astype("float32")
    scale = np.sqrt(kl / length)
    for _ in range(20):
        reached = sequence_kl(anchor + scale * step, anchor, length).mean()
        scale = scale * np.sqrt(kl / float(reached))
    return anchor + scale * step, anchor


@functools.partial(jax.jit, static_argnums=2)
def sequence_kl(logits, anchor_logits, length):
    """`KL(π ‖ π_anchor)` `(prompts,)`; token 0 is before the first."""
    log_probs = jax.nn.log_softmax(logits)
    difference = log_probs - jax.nn.log_softmax(anchor_logits)
    kls = jnp.sum(jnp.exp(log_probs) * difference, axis=-1)
    before = jax.nn.one_hot(jnp.zeros(logits.shape[0], int), VOCABULARY)
    total = 0.0
    for _ in range(length):
        total = total + jnp.sum(before * kls, axis=-1)
        before = jnp.einsum("bu,buv->bv", before, jnp.exp(log_probs))
    return total


def draw_tokens(key, logits, count, length):
    """Tokens of the policy, and those before, `(prompts, count, length)`."""

    def step(before, key):
        rows = jnp.take_along_axis(logits, before[:, :, None], axis=1)
        token = jax.random.categorical(key, rows)
        return token, (before, token)

    first = jnp.zeros((logits.shape[0], count), int)
    keys = jax.random.split(key, length)
    _, drawn = jax.lax.scan(step, first, keys)
    return tuple(jnp.moveaxis(x, 0, -1) for x in drawn)


def full_vocabulary_kl_loss(token_kls, token_log_probs, mask):
    """Loss whose gradient is that of `KL(π ‖ π')` of sequences, tail included.

    `Σ_t [KL_t + log π(y_t) · sg(Σ_{s>t} KL_s)]`: a token changes its own
    divergence and, because it is drawn, those of all later tokens. Without
    the second term, the tail, the gradient is biased.

    Args:
        token_kls: float tensor `(..., length)` with gradient, see `token_kls`.
        token_log_probs: float tensor `(..., length)` with gradient.
        mask: bool tensor `(..., length)`, True for the completion's tokens.

    Returns:
        float32 tensor `(...)`.
    """
    kls = ops.where(mask, token_kls, ops.zeros_like(token_kls))
    log_probs = ops.where(mask, token_log_probs, ops.zeros_like(kls))
    total = ops.sum(kls, axis=-1, keepdims=True)
    tail = ops.stop_gradient(total - ops.cumsum(kls, axis=-1))
    return ops.sum(kls + log_probs * tail, axis=-1)


def loss(name, logits, anchor_logits, before, tokens):
    """What `Bond` minimizes for `kl_weight=1`, summed over prompts."""
    rows, anchor_rows = (
        jnp.take_along_axis(table[:, None], before[..., None], axis=2)
        for table in (logits, anchor_logits)
    )
    mask = jnp.ones(tokens.shape, bool)
    token_log_probs = formulas.token_log_probs(rows, tokens)
    if name == "full_vocabulary":
        losses = full_vocabulary_kl_loss(
            formulas.token_kls(rows, anchor_rows), token_log_probs, mask
        )
        return jnp.sum(jnp.mean(losses, axis=1))
    log_probs = formulas.sequence_log_probs(token_log_probs, mask)
    anchor_log_probs = formulas.sequence_log_probs(
        formulas.token_log_probs(anchor_rows, tokens), mask
    )
    log_ratios = ops.stop_gradient(log_probs - anchor_log_probs)
    if name != "log_ratio":
        kind = name.rpartition(" ")[2]
        valid = jnp.ones(tokens.shape[0], bool)
        log_ratios = log_ratios - formulas.baseline(log_ratios, valid, kind)
    return jnp.sum(formulas.score_function_kl_loss(log_probs, log_ratios))


def measure_kl(length, kl, num_samples, draws, seed=0):
    """Bias and variance of each estimator from P policy samples.

    Yields:
        dict with `length`, `kl`, `p`, `name` and the `Moments`.
    """
    policy, anchor = make_tables(length, kl)
    # The mean of a prompt's other samples needs some.
    alone = ("prompt", "mixed") if num_samples == 1 else ()
    names = [name for name in NAMES if not name.endswith(alone)]

    def gradients(key, logits, anchor_logits):
        before, tokens = draw_tokens(key, logits, num_samples, length)
        return jnp.stack(
            [
                jax.grad(loss, argnums=1)(
                    name, logits, anchor_logits, before, tokens
                ).reshape(PROMPTS, -1)
                for name in names
            ]
        )

    exact = jax.grad(lambda x: sequence_kl(x, anchor, length).sum())(policy)
    exact = np.asarray(exact, "float64").reshape(1, PROMPTS, -1)
    exact = np.repeat(exact, len(names), axis=0)
    sampler = make_sampler(gradients, max(2, min(draws, 3200 // length)))
    moments = measure(
        sampler, (policy, anchor), exact, exact, exact, draws, seed
    )
    for name, result in zip(names, moments):
        yield {
            "length": length,
            "kl": kl,
            "p": num_samples,
            "name": name,
            **vars(result),
        }


def add_ratios(records):
    """Adds variance ratios to the log-ratio of one sample, eq. 19."""
    for record in records:
        paper = next(
            r
            for r in records
            if (r["length"], r["kl"], r["p"], r["name"])
            == (record["length"], record["kl"], 1, "log_ratio")
        )
        ratio = paper["variance"] / record["variance"]
        record["ratio_prompts"] = ratio
        record["ratio_sequences"] = ratio / record["p"]
        record["ratio_error"] = ratio * np.hypot(
            *(r["variance_error"] / r["variance"] for r in (paper, record))
        )
