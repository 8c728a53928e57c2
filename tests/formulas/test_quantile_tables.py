"""What ranks earn: exact means over all draws of the anchor's samples."""

import itertools
import math

import numpy as np
import pytest
import scipy.special
from keras import ops

from keras_bond import formulas
from keras_bond.formulas import quantile_tables
from tests.formulas import distributions

TABLES = {
    "harmonic": quantile_tables.harmonic_table,
    "pairs": quantile_tables.pairs_table,
    "monte_carlo": formulas.monte_carlo_table,
}


def expected_reward(tie_table, rewards, k):
    """Mean over all k-tuples of anchor samples, for each completion."""
    tuples, chances = distributions.all_tuples(0, k)
    counts = quantile_tables.count_beaten(
        np.tile(rewards, (len(tuples), 1)).astype("float32"),
        rewards[tuples].astype("float32"),
    )
    return chances @ ops.convert_to_numpy(
        quantile_tables.look_up(tie_table, *counts)
    )


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("kind", distributions.REWARDS)
def test_midrank_tables_have_the_exact_expectation(kind, k):
    """With u the mid-rank (p_le + p_lt) / 2, which is exact at N = 2.

    Harmonic: `-Σ_{m<=k} (1-u)^m / m`; pairs: `-log 16 (1-u)²`. Pins: ties
    thrown to one side, a series one term short, a factor at one half.
    """
    rewards = distributions.REWARDS[kind]
    p_le = np.array([distributions.ANCHOR[rewards <= r].sum() for r in rewards])
    p_lt = np.array([distributions.ANCHOR[rewards < r].sum() for r in rewards])
    miss = 1 - (p_le + p_lt) / 2
    expected = {
        "harmonic": -sum(miss**m / m for m in range(1, k + 1)),
        "pairs": -math.log(16) * miss**2,
    }
    for name, exact in expected.items():
        table = quantile_tables.tie_table(TABLES[name](k), 2)
        result = expected_reward(table, rewards, k)
        np.testing.assert_allclose(result, exact, rtol=1e-5, atol=1e-6)


def test_pairs_of_two_are_the_reward_of_jbond():
    """Eq. 17 is this table's k = 2."""
    np.testing.assert_allclose(
        quantile_tables.pairs_table(2), [-math.log(16), 0.0, 0.0]
    )
    reward = formulas.jbond_reward(np.array([True, False, False]))
    np.testing.assert_allclose(
        ops.convert_to_numpy(reward), quantile_tables.pairs_table(2), rtol=1e-6
    )


def test_harmonic_over_anchor_samples_has_mean_minus_k_over_k_plus_1():
    for k in (2, 4, 16):
        assert np.mean(quantile_tables.harmonic_table(k)) == pytest.approx(
            -k / (k + 1)
        )


def test_monte_carlo_is_equation_10_and_none_beaten_counts_one_half():
    """Pins: a reward of minus infinity."""
    np.testing.assert_allclose(
        formulas.monte_carlo_table(4), np.log([0.125, 0.25, 0.5, 0.75, 1.0])
    )


@pytest.mark.parametrize("n", [2, 4])
def test_without_ties_a_table_is_only_scaled(n):
    table = quantile_tables.harmonic_table(4)
    result = quantile_tables.tie_table(table, n)
    for c in range(5):
        assert result[c][0] == pytest.approx((n - 1) * table[c])


def test_midrank_for_larger_n_is_the_log_mean_exp_over_ranks():
    """The rank among t tied is uniform, and exp((N-1) f) is what counts."""
    table = quantile_tables.harmonic_table(5)
    result = quantile_tables.tie_table(table, 4)
    places = np.exp(3 * np.array(table[1:5]))
    assert result[1][3] == pytest.approx(np.log(places.mean()))


def test_counts_are_those_of_loops():
    """Tie-breakers order the tied, and change nothing else."""
    generator = np.random.default_rng(0)
    policy = generator.integers(0, 3, (50, 2)).astype("float32")
    anchor = generator.integers(0, 3, (50, 4)).astype("float32")
    tie_breakers = generator.random((50, 2)), generator.random((50, 4))
    plain = quantile_tables.count_beaten(policy, anchor)
    broken = quantile_tables.count_beaten(
        policy, anchor, tuple(x.astype("float32") for x in tie_breakers)
    )
    for i, j in itertools.product(range(50), range(2)):
        assert plain[0][i, j] == sum(a < policy[i, j] for a in anchor[i])
        assert plain[1][i, j] == sum(a == policy[i, j] for a in anchor[i])
        keys = zip(anchor[i], tie_breakers[1][i])
        beaten = sum(
            key < (policy[i, j], tie_breakers[0][i, j]) for key in keys
        )
        assert broken[0][i, j] == beaten and broken[1][i, j] == 0


def test_harmonic_numbers_of_real_numbers():
    """Against SciPy's digamma, and the sum for integers."""
    x = np.array([0, 1e-3, 0.5, 1, 2, 3.7, 10, 63.5, 1000], "float32")
    result = ops.convert_to_numpy(quantile_tables.harmonic_number(x))
    exact = scipy.special.digamma(x.astype("float64") + 1) + np.euler_gamma
    np.testing.assert_allclose(result, exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("kind", ["distinct", "tied"])
def test_labels_leave_a_sample_out_of_its_own_quantile(kind):
    """Pins: an anchor sample counted against itself; le and lt swapped."""
    rewards = distributions.REWARDS[kind][[0, 1, 2, 3, 2]][None].astype(
        "float32"
    )
    labels = ops.convert_to_numpy(formulas.quantile_labels(rewards, 2))
    for i in range(5):
        others = [rewards[0, j] for j in range(2, 5) if j != i]
        le = np.mean([o <= rewards[0, i] for o in others])
        lt = np.mean([o < rewards[0, i] for o in others])
        np.testing.assert_allclose(labels[0, i], [le, lt], rtol=1e-6)


def test_quantile_loss_is_the_cross_entropy():
    logits = np.array([[[2.0, -1.0], [0.5, 30.0]]], "float32")
    labels = np.array([[[1.0, 0.25], [0.0, 1.0]]], "float32")
    p = 1 / (1 + np.exp(-logits.astype("float64")))
    exact = -(labels * np.log(p) + (1 - labels) * np.log1p(-p + 1e-300))
    result = formulas.quantile_loss(logits, labels)
    np.testing.assert_allclose(
        ops.convert_to_numpy(result), [exact.mean()], rtol=1e-5
    )
