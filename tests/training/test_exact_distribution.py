"""Training ends at the exact Best-of-N distribution of a small world.

The world has 21 completions per prompt, so that every distribution is a finite
sum. The first prompt has rewards without ties, the second one has three levels.
"""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_bond
from examples import enumerable
from keras_bond.formulas.forward_kl import control_variate_coefficients
from keras_bond.training import estimators

WORLD = enumerable.World(
    vocabulary_size=5, max_completion_length=2, num_prompts=2
)


def make_rewards():
    distinct = enumerable.make_rewards(WORLD, seed=0)
    tied = enumerable.make_rewards(WORLD, seed=0, levels=3)
    return np.stack([distinct[0], tied[1]])


def make_policy(num_layers=1):
    return enumerable.make_policy(WORLD, seed=0, num_layers=num_layers)


def distribution_of(policy):
    return np.exp(enumerable.log_probs(WORLD, policy))


class DensityRatio(estimators.Learned):
    """Imitates anchor samples by `π_BoN / π_anchor`, exact quantiles given.

    At `π = π_BoN` all coefficients of both KLs vanish, so that no noise is
    left there: the sharpest test of everything around the estimator.
    """

    def forward(self, batch, outputs, log_ratios):
        log_p = ops.log_sigmoid(ops.stop_gradient(outputs["quantile_logits"]))
        log_weights = keras_bond.formulas.log_best_of_n_ratio(
            log_p[:, :, 0], log_p[:, :, 1], self.best_of_n
        )
        p = self.num_policy_samples
        coefficients = control_variate_coefficients(
            ops.exp(log_weights[:, p:]) / self.num_anchor_samples,
            log_ratios[:, p:],
            batch["valid"],
        )
        return ops.pad(coefficients, [(0, 0), (p, 0)])


def train(policy, rewards, steps, copies=16, recipe=None, **settings):
    """Trains against a fixed anchor and returns the trainer.

    A `recipe` that the library does not have takes the place of its own.
    """
    bond = keras_bond.Bond(
        policy,
        enumerable.Table(WORLD, rewards),
        **WORLD.lengths,
        num_policy_samples=8,
        num_anchor_samples=16,
        seed=0,
        **settings,
    )
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - 25, alpha=0.01, warmup_target=1e-2, warmup_steps=25
    )
    if recipe is not None:
        counts = (bond.num_policy_samples, bond.num_anchor_samples)
        bond.estimator = recipe(bond.best_of_n, *counts)
    bond.compile(keras.optimizers.Adam(rate))
    bond.fit(
        WORLD.prompts(copies * steps),
        batch_size=copies * WORLD.num_prompts,
        verbose=0,
        callbacks=[keras_bond.callbacks.AnchorFixed()],
    )
    return bond


def distances(policy, start, rewards, n):
    """Total variation to Best-of-N of the initial policy, `(prompts,)`."""
    target = enumerable.best_of_n_distribution(start, rewards, n)
    return 0.5 * np.abs(distribution_of(policy) - target).sum(axis=1)


def test_the_distribution_is_that_of_picking_the_best():
    """Brute force over all triples, ties shared; and everything sums to 1."""
    start, rewards, n = distribution_of(make_policy()), make_rewards(), 3
    np.testing.assert_allclose(start.sum(axis=1), 1.0, atol=1e-5)
    expected = np.zeros_like(start)
    for i in range(WORLD.num_prompts):
        for drawn in itertools.product(range(start.shape[1]), repeat=n):
            drawn = np.array(drawn)
            tied = drawn[rewards[i, drawn] == rewards[i, drawn].max()]
            np.add.at(expected[i], tied, start[i, drawn].prod() / len(tied))
    actual = enumerable.best_of_n_distribution(start, rewards, n)
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_the_table_finds_every_completion():
    """Also behind the end, where the ids are junk that only the mask tells."""
    rewards = make_rewards()
    token_ids, padding_mask = WORLD.rows()
    token_ids = np.where(padding_mask, token_ids, 3)
    found = enumerable.Table(WORLD, rewards)(
        {
            "token_ids": keras.ops.convert_to_tensor(token_ids),
            "padding_mask": keras.ops.convert_to_tensor(padding_mask),
        }
    )
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(found), rewards.astype("float32")
    )


@pytest.mark.parametrize(
    ("n", "steps"),
    [(2, 125), pytest.param(8, 275, marks=pytest.mark.one_backend)],
)
def test_exact_quantiles_lead_to_the_exact_distribution(n, steps):
    """At the optimum no sample moves the policy, so only rounding is left.

    The draws are the same on every backend. With p_le and p_lt swapped the
    distance for N = 2 stays at 0.16.
    """
    policy, rewards = make_policy(), make_rewards()
    start = distribution_of(policy)
    assert min(distances(policy, start, rewards, n)) > 0.15
    quantiles = enumerable.quantile_logits(start, rewards)
    bond = train(
        policy,
        rewards,
        steps,
        copies=8,
        best_of_n=n,
        estimator=enumerable.Table(WORLD, quantiles),
        recipe=DensityRatio,
    )
    assert max(distances(policy, start, rewards, n)) < 0.01
    with bond.using("anchor"):
        np.testing.assert_allclose(distribution_of(policy), start, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["pooled", pytest.param("control_variate", marks=pytest.mark.one_backend)],
)
def test_counted_quantiles_come_close_to_the_distribution(name):
    """16 anchor samples tell a quantile to 0.1 only, and leave some noise."""
    policy, rewards = make_policy(), make_rewards()
    start = distribution_of(policy)
    train(policy, rewards, 150, estimator=name)
    reached = distances(policy, start, rewards, 2)
    assert max(reached) < 0.03
