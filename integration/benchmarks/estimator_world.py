"""Softmax policies over listed outcomes, with exact gradients.

A prompt has a few outcomes, a policy one logit for each. The ascent direction
of `Σ_i c_i log π(y_i)` is then `Σ_i c_i (e_{y_i} - π)`, and both divergences to
the Best-of-N distribution have exact gradients. Those are in NumPy and float64,
on purpose without `keras_bond.formulas`; arrays are `(prompts, outcomes)`.
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np

from keras_bond import formulas

PROMPTS, OUTCOMES = 16, 32
SUCCESS_RATE = 0.05
# Where the policy stands, with rewards that order all outcomes.
PLACES = ("anchor", "halfway", "best_of_2")
# Halfway again with rewards of 4 values; at the anchor with rewards 0 and 1.
TIED, BINARY = "tied", "binary"


class Scene(typing.NamedTuple):
    """Where policy and anchor stand, and what outcomes earn.

    Attributes:
        policy: float array `(prompts, outcomes)`, probabilities.
        anchor: float array `(prompts, outcomes)`, probabilities.
        rewards: float array `(prompts, outcomes)`.
    """

    policy: np.ndarray
    anchor: np.ndarray
    rewards: np.ndarray


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def make_anchor(generator):
    """Anchor logits of standard deviation 1, and distinct rewards."""
    shape = PROMPTS, OUTCOMES
    logits = generator.normal(size=shape)
    ranks = np.tile(np.arange(OUTCOMES, dtype=float), (PROMPTS, 1))
    return logits, generator.permuted(ranks, axis=1)


def make_scenes(seed=0):
    """The scenes of the benchmark by name.

    Returns:
        dict from name to `Scene`, float64.
    """
    generator = np.random.default_rng(seed)
    logits, ranks = make_anchor(generator)
    anchor = softmax(logits)
    four_values = generator.integers(0, 4, anchor.shape).astype(float)
    rare = np.concatenate(
        [
            np.full((PROMPTS, 1), SUCCESS_RATE),
            (1 - SUCCESS_RATE) * softmax(logits[:, 1:]),
        ],
        axis=1,
    )
    is_first = np.zeros_like(anchor)
    is_first[:, 0] = 1.0

    def towards_best_of_2(rewards, share):
        ratio = best_of_n_distribution(anchor, rewards, 2) / anchor
        return Scene(softmax(logits + share * np.log(ratio)), anchor, rewards)

    return {
        "anchor": towards_best_of_2(ranks, 0.0),
        "halfway": towards_best_of_2(ranks, 0.5),
        "best_of_2": towards_best_of_2(ranks, 1.0),
        TIED: towards_best_of_2(four_values, 0.5),
        BINARY: Scene(rare, rare, is_first),
    }


def quantiles(anchor, rewards):
    """`p_le` and `p_lt`, exact."""
    own, others = rewards[..., :, None], rewards[..., None, :]
    p_le = ((others <= own) * anchor[..., None, :]).sum(-1)
    p_lt = ((others < own) * anchor[..., None, :]).sum(-1)
    return p_le, p_lt


def best_of_n_distribution(anchor, rewards, n):
    """Theorem 1 with ties at random: a tied group shares its mass."""
    p_le, p_lt = quantiles(anchor, rewards)
    return anchor * (p_le**n - p_lt**n) / (p_le - p_lt)


def forward_gradient(scene, n):
    """Ascent of `-KL(π_BoN ‖ π)` in the logits: `π_BoN - π`."""
    return best_of_n_distribution(scene.anchor, scene.rewards, n) - scene.policy


def backward_gradient(scene, returns):
    """Ascent of `E_π[returns]` in the logits: `π (R - E_π[R])`."""
    mean = (scene.policy * returns).sum(axis=-1, keepdims=True)
    return scene.policy * (returns - mean)


def exact_returns(scene, n):
    """`log π_BoN - log π`, whose gradient descends `KL(π ‖ π_BoN)`."""
    target = best_of_n_distribution(scene.anchor, scene.rewards, n)
    return np.log(target) - np.log(scene.policy)


def draw(key, scene, num_policy_samples, num_anchor_samples):
    """Draws P + k outcomes a prompt, policy first, and what is known of them.

    Args:
        key: JAX random key.
        scene: `Scene` of float32 arrays.
        num_policy_samples: int, P.
        num_anchor_samples: int, k.

    Returns:
        dict of arrays `(prompts, P + k)`: `outcomes` int, `rewards`,
        `log_ratios`, exact `log_p_le` and `log_p_lt`, `tie_breakers`; and
        `valid` bool `(prompts,)`.
    """
    policy, anchor, ties = jax.random.split(key, 3)
    outcomes = jnp.concatenate(
        [
            _pick(policy, scene.policy, num_policy_samples),
            _pick(anchor, scene.anchor, num_anchor_samples),
        ],
        axis=1,
    )
    p_le, p_lt = formulas.quantiles(scene.anchor, scene.rewards)
    listed = {
        "rewards": scene.rewards,
        "log_ratios": jnp.log(scene.policy) - jnp.log(scene.anchor),
        "log_p_le": jnp.log(p_le),
        "log_p_lt": jnp.log(p_lt),
    }
    return {
        "outcomes": outcomes,
        "tie_breakers": jax.random.uniform(ties, outcomes.shape),
        "valid": jnp.ones(outcomes.shape[0], bool),
        **{
            name: jnp.take_along_axis(values, outcomes, axis=1)
            for name, values in listed.items()
        },
    }


def _pick(key, probs, count):
    """Outcomes `(prompts, count)` by inverting the distribution function."""
    ends = jnp.cumsum(probs, axis=1)
    uniform = jax.random.uniform(key, (probs.shape[0], count))
    # Rounding may leave the last end below 1.
    place = uniform * ends[:, -1:]
    return jnp.sum(place[:, :, None] >= ends[:, None, :-1], axis=-1)


def ascent(coefficients, outcomes, policy):
    """`Σ_i c_i (e_{y_i} - π)` for each prompt.

    Args:
        coefficients: float array `(..., prompts, samples)`.
        outcomes: int array `(prompts, samples)`.
        policy: float array `(prompts, outcomes)`.

    Returns:
        float array `(..., prompts, outcomes)`.
    """
    chosen = jax.nn.one_hot(outcomes, policy.shape[1])
    total = coefficients.sum(axis=-1)[..., None]
    return jnp.einsum("...bn,bnv->...bv", coefficients, chosen) - total * policy
