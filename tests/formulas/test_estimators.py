"""Every estimator called unbiased, over ALL draws it can make.

Exact: no sampling error, so no false alarms.
"""

import numpy as np
import pytest
from keras import ops

from keras_bond import formulas
from keras_bond.formulas import forward_kl
from keras_bond.formulas import other_methods
from keras_bond.formulas import pooled
from tests.formulas import distributions


def rewards_of(kind, tuples):
    return distributions.REWARDS[kind][tuples].astype("float32")


def forward_truth(kind, n=2):
    """Ascent of `E_BoN[log π]`: minus the gradient of the forward KL."""
    return (
        distributions.best_of_n_by_brute_force(distributions.REWARDS[kind], n)
        - distributions.POLICY
    )


@pytest.mark.parametrize("k, n", [(2, 2), (3, 2), (3, 3), (4, 2)])
@pytest.mark.parametrize("kind", distributions.REWARDS)
def test_order_statistics_are_unbiased(kind, k, n):
    """`E Σ w_i δ_{y_i} = π_BoN`, ties included (eq. 13)."""
    tuples, chances = distributions.all_tuples(0, k)
    weights = formulas.best_of_n_weights(rewards_of(kind, tuples), n)
    ascent = distributions.expected_ascent(
        ops.convert_to_numpy(weights), tuples, chances
    )
    np.testing.assert_allclose(ascent, forward_truth(kind, n), atol=1e-6)


@pytest.mark.parametrize("k, n", [(2, 2), (3, 3)])
@pytest.mark.parametrize("kind", ["distinct", "tied"])
def test_the_best_sample_is_unbiased(kind, k, n):
    """The paper's pick, with 1,000 orders of the tied.

    False alarm with ties: below 1e-5 (5 standard errors of a share in 1,000
    orders, at most 0.5 / √1000 each).
    """
    orders = 1000
    tuples, chances = distributions.all_tuples(0, k)
    ties = np.random.default_rng(0).random((orders, k)).astype("float32")
    rows = np.repeat(tuples, orders, axis=0)
    weights = forward_kl.best_sample_weights(
        rewards_of(kind, rows), n, np.tile(ties, (len(tuples), 1))
    )
    ascent = distributions.expected_ascent(
        ops.convert_to_numpy(weights), rows, np.repeat(chances / orders, orders)
    )
    tolerance = 1e-6 if kind == "distinct" else 2.5 / np.sqrt(orders)
    np.testing.assert_allclose(ascent, forward_truth(kind, n), atol=tolerance)


@pytest.mark.parametrize("kind", distributions.REWARDS)
def test_the_control_variate_adds_no_bias_and_takes_variance(kind):
    """Its scale comes from another prompt, here a fixed one."""
    tuples, chances = distributions.all_tuples(0, 3)
    other = np.array([[0, 2, 3]])
    coefficients = []
    for row in tuples:
        batch = np.concatenate([row[None], other])
        weights = formulas.best_of_n_weights(rewards_of(kind, batch), 2)
        result = forward_kl.control_variate_coefficients(
            weights, distributions.log_ratios(batch), np.array([True, True])
        )
        coefficients.append(ops.convert_to_numpy(result)[0])
    ascent = distributions.expected_ascent(coefficients, tuples, chances)
    np.testing.assert_allclose(ascent, forward_truth(kind), atol=1e-6)


def test_the_scale_is_the_best_one_of_the_other_prompts():
    """`min(1, k Σ w ρ / Σ ρ²)` of the others; dropped prompts do not count."""
    weights = np.array([[0.5, 0.5], [1, 0], [0, 1]], "float32")
    ratios = np.array([[1.0, 1.0], [0.5, 2.0], [9.0, 9.0]], "float32")
    mask = np.array([True, True, False])
    scale = forward_kl.control_variate_scale(weights, ratios, mask)
    expected = [[2 * 0.5 / 4.25], [1.0], [2 * 1.5 / 6.25]]
    np.testing.assert_allclose(ops.convert_to_numpy(scale), expected, rtol=1e-6)
    alone = forward_kl.control_variate_scale(
        weights, ratios, np.array([True, False, False])
    )
    assert float(alone[0, 0]) == 1.0


@pytest.mark.parametrize("p, k", [(1, 2), (2, 1), (2, 2), (3, 0), (0, 3)])
@pytest.mark.parametrize("kind", distributions.REWARDS)
def test_the_pooled_forward_part_is_unbiased(kind, p, k):
    """All samples, of either distribution, stand for that of Best-of-2."""
    tuples, chances = distributions.all_tuples(p, k)
    coefficients = pooled.pooled_forward_coefficients(
        rewards_of(kind, tuples), distributions.log_ratios(tuples), p
    )
    ascent = distributions.expected_ascent(
        ops.convert_to_numpy(coefficients), tuples, chances
    )
    np.testing.assert_allclose(ascent, forward_truth(kind), atol=2e-6)


def test_pooled_weights_stand_for_the_policy():
    """`E Σ ρ̃ f / n = E_π f`: the balance heuristic, by enumeration."""
    tuples, chances = distributions.all_tuples(2, 1)
    ratios = np.exp(distributions.log_ratios(tuples))
    weights = ops.convert_to_numpy(pooled.policy_weights(ratios, 2)) / 3
    probs = np.zeros(distributions.SIZE)
    for row, chance, weight in zip(tuples, chances, weights):
        np.add.at(probs, row, chance * weight)
    np.testing.assert_allclose(probs, distributions.POLICY, atol=1e-6)


def pooled_by_loops(rewards, log_ratios, p):
    """Both pooled parts in NumPy loops, written from the formulas."""
    batch, n = rewards.shape
    k = n - p
    x = np.exp(log_ratios.astype("float64"))
    anchor = n / (p * x + k)
    weighted = x * anchor
    returns = np.zeros((batch, n))
    for b in range(batch):
        for i in range(n):
            beaten = count = 0.0
            for j in range(n):
                if j != i:
                    win = (rewards[b, i] > rewards[b, j]) + 0.5 * (
                        rewards[b, i] == rewards[b, j]
                    )
                    beaten += anchor[b, j] * win
                    count += anchor[b, j]
            returns[b, i] = digamma(beaten + 1) - digamma(count + 1)
    returns -= log_ratios
    result = np.zeros((batch, n))
    for b in range(batch):
        others = [c for c in range(batch) if c != b]
        by_batch = (weighted * returns)[others].sum() / weighted[others].sum()
        for i in range(n):
            rest = [j for j in range(n) if j != i]
            by_prompt = (weighted * returns)[b, rest].sum() / weighted[
                b, rest
            ].sum()
            advantage = returns[b, i] - 0.5 * by_prompt - 0.5 * by_batch
            result[b, i] = weighted[b, i] * advantage / n
    return result


def digamma(x):
    import scipy.special

    return scipy.special.digamma(x)


def test_the_pooled_backward_part_is_that_of_loops():
    generator = np.random.default_rng(0)
    rewards = generator.integers(0, 3, (6, 5)).astype("float32")
    ratios = generator.normal(0, 0.7, (6, 5)).astype("float32")
    result = pooled.pooled_backward_coefficients(
        rewards, ratios, 2, np.ones(6, bool)
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(result),
        pooled_by_loops(rewards, ratios, 2),
        rtol=1e-4,
        atol=1e-5,
    )
    dropped = pooled.pooled_backward_coefficients(
        np.concatenate([rewards, 100 * rewards[:1]]),
        np.concatenate([ratios, ratios[:1]]),
        2,
        np.array([True] * 6 + [False]),
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(dropped)[:6],
        ops.convert_to_numpy(result),
        rtol=1e-5,
    )


def test_equal_rewards_teach_nothing():
    """At policy = anchor the update is exactly zero; the paper's drifts."""
    rewards, ratios = np.zeros((3, 4), "float32"), np.zeros((3, 4), "float32")
    mask = np.ones(3, bool)
    weights = formulas.best_of_n_weights(rewards, 2)
    for result in (
        forward_kl.control_variate_coefficients(weights, ratios, mask),
        pooled.pooled_forward_coefficients(rewards, ratios, 2),
        pooled.pooled_backward_coefficients(rewards, ratios, 2, mask),
    ):
        np.testing.assert_allclose(ops.convert_to_numpy(result), 0, atol=1e-6)


def test_far_policies_give_finite_coefficients():
    """Pins: exp() of a log-ratio of hundreds of nats."""
    rewards = np.array([[1.0, 2.0, 3.0, 0.0]] * 2, "float32")
    ratios = np.array([[300.0, -300.0, 50.0, 0.0]] * 2, "float32")
    mask = np.ones(2, bool)
    weights = formulas.best_of_n_weights(rewards, 2)
    for result in (
        forward_kl.control_variate_coefficients(weights, ratios, mask),
        pooled.pooled_forward_coefficients(rewards, ratios, 2),
        pooled.pooled_backward_coefficients(rewards, ratios, 2, mask),
    ):
        assert np.isfinite(ops.convert_to_numpy(result)).all()


def test_reinforce_descends_its_regularized_objective():
    """`∇ E[r] - β ∇ KL(π ‖ π_ref)`, exactly (section 6 of the paper)."""
    tuples, chances = distributions.all_tuples(1, 0)
    ratios = distributions.log_ratios(tuples)
    rewards = rewards_of("distinct", tuples)
    returns = other_methods.reinforce_returns(rewards, ratios, 0.3)
    ascent = distributions.expected_ascent(
        ops.convert_to_numpy(returns), tuples, chances
    )

    def objective(logits):
        p = distributions.softmax(logits)
        return p @ distributions.REWARDS["distinct"] - 0.3 * p @ np.log(
            p / distributions.ANCHOR
        )

    steps = 1e-5 * np.eye(4)
    start = np.log(distributions.POLICY)
    truth = [
        (objective(start + s) - objective(start - s)) / 2e-5 for s in steps
    ]
    np.testing.assert_allclose(ascent, truth, atol=1e-5)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_the_margin_of_bonbon_is_that_of_best_of_n(n):
    """`E[(N-1)(log U_max - log U_min)]` over n uniforms, by simulation.

    False alarm: below 1e-5 (5 standard errors), and the seed is fixed.
    """
    uniforms = np.random.default_rng(n).random((200_000, n))
    gaps = (n - 1) * np.log(uniforms.max(axis=1) / uniforms.min(axis=1))
    error = 5 * gaps.std() / np.sqrt(len(gaps))
    assert abs(gaps.mean() - other_methods.bonbon_margin(n)) < error


def test_bonbon_contrast_is_the_slope_of_its_square():
    ratios = np.array([[0.3, -0.2, 0.5]], "float32")
    best, worst = (
        np.eye(3, dtype="float32")[[0]],
        np.eye(3, dtype="float32")[[2]],
    )
    result = other_methods.bonbon_contrast_coefficients(best, worst, ratios)
    margin = other_methods.bonbon_margin(3)
    slope = 2 * (margin - (0.3 - 0.5))
    np.testing.assert_allclose(
        ops.convert_to_numpy(result), [[slope, 0.0, -slope]], rtol=1e-5
    )
