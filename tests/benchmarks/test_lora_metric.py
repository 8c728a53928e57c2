"""The study of metrics: its gradients, and a case whose answer is known."""

import math
import pathlib
import sys

import keras
import numpy as np
import pytest

sys.path.append(
    str(pathlib.Path(__file__).parents[2] / "integration" / "benchmarks")
)

import lora_metric
import smollm2

import keras_bond

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="the study runs on JAX"
)


def test_correlations_are_those_of_the_metrics():
    """Gradients are (z, z + u) and (noise, noise), with u the reward.

    Only the second has a covariance with u, so that SGD's log-ratio is z + u,
    with a correlation of 1/√2, which no diagonal changes. The Fisher matrix
    (1, 1; 1, 2), damped by 0.15, turns it into 0.15 z + 1.15 u.
    """
    rng = np.random.default_rng(0)

    def draw(prompts):
        rewards = rng.uniform(-(3**0.5), 3**0.5, (prompts, 16))
        rows = rng.standard_normal((prompts, 16, 4))
        rows[..., 1] = rows[..., 0] + rewards
        return rewards, rows

    (rewards, gradients), (others, of_others) = draw(600), draw(200)
    table = lora_metric.compare(
        {
            "rewards": rewards,
            "gradients": gradients,
            "held_out_rewards": others,
            "held_out_gradients": of_others,
            "shapes": np.array([[2, 1], [1, 2]]),
        }
    )
    rows = [line.split("|")[1:-1] for line in table.splitlines()[2:]]
    found = {row[0].strip(): float(row[1].split()[0]) for row in rows}
    solved = 1.15 / math.hypot(0.15, 1.15)
    # Standard errors of held-out correlations are below 0.01.
    assert found["SGD"] == pytest.approx(0.5**0.5, abs=0.04)
    assert found["Fisher, its diagonal"] == pytest.approx(0.5**0.5, abs=0.04)
    assert found["Fisher of each factor"] == pytest.approx(solved, abs=0.006)
    online = found["the same, step by step"]
    assert online == pytest.approx(solved, abs=0.006)
    assert float(rows[0][2]) == pytest.approx(0.75 / found["SGD"] ** 2, abs=0.1)


def test_gradients_are_those_of_each_samples_log_probability():
    """The log-probability, not the gradient, is the trainer's own here."""
    keras.utils.set_random_seed(0)
    policy = smollm2.tiny_policy()
    policy.backbone.enable_lora(2)
    bond = keras_bond.Bond(
        policy,
        lambda prompts, completions: [0.0] * len(prompts),
        max_prompt_length=8,
        max_completion_length=4,
        reference=True,
    )
    samples, _ = bond.draw_scored(["a cat", "b"], 2, batch_size=2, seed=0)
    gradients = lora_metric.SecondFactors(policy, rows_at_once=3)
    found = gradients(samples)
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(found.shape[1]).astype("float32")
    ways, i = [], 0
    for v in gradients.variables:
        size = math.prod(v.shape)
        ways.append((v, direction[i : i + size].reshape(v.shape)))
        i += size
    assert i == found.shape[1]

    def log_probs(step):
        for variable, way in ways:
            variable.assign(step * way)
        return bond.log_probs_and_kls_of(samples)[0]

    step = 0.002
    difference = (log_probs(step) - log_probs(-step)) / (2 * step)
    np.testing.assert_allclose(
        found @ direction, difference, rtol=0.02, atol=0.02
    )
