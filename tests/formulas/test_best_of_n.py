"""Best-of-N from one pool, against subset enumeration and the exact probs."""

import itertools
import math

import numpy as np
import pytest
from keras import ops

from keras_bond import formulas

POOLS = {
    "distinct": [3.0, 1.0, 4.0, 1.5, 9.0],
    "tied": [2.0, 1.0, 2.0, 0.0, 2.0],
    "two tied groups": [1.0, 1.0, 0.0, 0.0, 1.0],
    "all equal": [7.0] * 5,
}
LEVELS = np.array([0.0, 1.0, 2.0])
PROBS = np.array([0.5, 0.3, 0.2])

pools = pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS.keys())


def per_pool(function, rewards, n):
    return ops.convert_to_numpy(function(np.array(rewards, "float32"), n))


def exact_best_of_n(probs, n):
    """Theorem 1 with ties broken at random: mass of each level of reward."""
    p_le = np.cumsum(probs)
    return p_le**n - (p_le - probs) ** n


def exact_kl(probs, n):
    best = exact_best_of_n(probs, n)
    return float(np.sum(best * np.log(best / probs)))


def all_pools(size):
    """Every pool of `size` draws from PROBS, with its probability."""
    draws = np.array(list(itertools.product(range(len(PROBS)), repeat=size)))
    return LEVELS[draws], PROBS[draws].prod(axis=1)


def weights_by_enumeration(pool, n):
    weights = np.zeros(len(pool))
    for subset in itertools.combinations(range(len(pool)), n):
        highest = max(pool[i] for i in subset)
        winners = [i for i in subset if pool[i] == highest]
        weights[winners] += 1 / len(winners)
    return weights / math.comb(len(pool), n)


def win_rate_by_enumeration(pool, n):
    results = []
    for subset in itertools.combinations(range(len(pool)), n):
        highest = max(pool[i] for i in subset)
        for other in set(range(len(pool))) - set(subset):
            tie = highest == pool[other]
            results.append(0.5 if tie else float(highest > pool[other]))
    return np.mean(results)


@pools
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_weights_are_those_of_all_subsets(pool, n):
    """Pins: `le` and `lt` swapped, ties not shared, wrong binomials."""
    result = per_pool(formulas.best_of_n_weights, [pool], n)[0]
    np.testing.assert_allclose(
        result, weights_by_enumeration(pool, n), atol=1e-6
    )


@pools
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_win_rate_is_that_of_all_subsets_against_one_other(pool, n):
    """Pins: a sample compared with itself, ties counted as wins."""
    result = per_pool(formulas.best_of_n_win_rate, [pool], n)[0]
    assert result == pytest.approx(win_rate_by_enumeration(pool, n), abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_weights_are_unbiased_for_the_best_of_n_distribution(n):
    """Pins: a weight that estimates another N, by summing over all pools.

    `E[Σ w_i 1{y_i in level}]` must be theorem 1's mass of the level.
    """
    rewards, probability = all_pools(5)
    weights = per_pool(formulas.best_of_n_weights, rewards, n)
    masses = [(weights * (rewards == level)).sum(1) for level in LEVELS]
    expected = [probability @ mass for mass in masses]
    np.testing.assert_allclose(expected, exact_best_of_n(PROBS, n), atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_win_rate_is_unbiased(n):
    """Pins: a pool one too small or one too large in the binomials."""
    rewards, probability = all_pools(5)
    result = probability @ per_pool(formulas.best_of_n_win_rate, rewards, n)
    below = np.cumsum(PROBS) - PROBS
    expected = exact_best_of_n(PROBS, n) @ (below + PROBS / 2)
    assert result == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_without_ties_win_rate_is_n_over_n_plus_one(n):
    """Pins: the closed form, whatever the pool."""
    rewards = np.random.default_rng(0).permutation(20)[None]
    result = per_pool(formulas.best_of_n_win_rate, rewards, n)[0]
    assert result == pytest.approx(n / (n + 1), rel=1e-5)


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_kl_of_a_pool_without_ties_is_a_little_low(n):
    """Pins: the closed form, and the size of the error that is promised."""
    closed_form = math.log(n) - (n - 1) / n
    for pool in (32, 64):
        result = per_pool(formulas.best_of_n_kl, [np.arange(pool)], n)[0]
        low_by = closed_form - result
        promised = (n / pool) ** 2 / 24
        # Twice that, and some float32 rounding, for the smallest n.
        assert 0.5 * promised - 1e-5 < low_by < 3 * promised + 1e-5


@pytest.mark.parametrize("rare", [0.02, 0.05, 0.1, 0.3, 0.5, 0.9])
def test_mean_kl_of_binary_rewards_errs_by_less_than_promised(rare):
    """Pins: the KL of ties kept in order, `log N - (N-1)/N` for any.

    Exact mean over all pools of 32 with two levels of reward.
    """
    pool, probs = 32, np.array([1 - rare, rare])
    counts = np.arange(pool + 1)
    rewards = np.arange(pool)[None, :] < counts[:, None]
    chance = [
        math.comb(pool, c) * rare**c * (1 - rare) ** (pool - c) for c in counts
    ]
    for n in (2, 4, 8, 16):
        mean = np.array(chance) @ per_pool(formulas.best_of_n_kl, rewards, n)
        assert abs(mean - exact_kl(probs, n)) < 0.4 * n / pool


@pools
def test_kl_of_a_pool_is_that_of_its_empirical_distribution(pool):
    """Pins: a sum for the mean, or a factor of the tied group forgotten."""
    _, counts = np.unique(pool, return_counts=True)
    for n in (1, 2, 5):
        result = per_pool(formulas.best_of_n_kl, [pool], n)[0]
        assert result == pytest.approx(exact_kl(counts / 5, n), abs=1e-5)


def test_kl_of_best_of_one_and_of_a_constant_reward_is_zero():
    """Pins: an estimate that sees a divergence where there is none."""
    assert abs(per_pool(formulas.best_of_n_kl, [[1, 2, 3]], 1)[0]) < 1e-6
    assert abs(per_pool(formulas.best_of_n_kl, [[5, 5, 5]], 3)[0]) < 1e-6


@pytest.mark.parametrize("n", [0, 6])
def test_weights_refuse_an_n_that_the_pool_cannot_serve(n):
    """Pins: binomials of nothing, silently NaN."""
    with pytest.raises(ValueError, match=rf"`n` must be .* 5.*n={n}"):
        per_pool(formulas.best_of_n_weights, [POOLS["distinct"]], n)


@pytest.mark.parametrize("n", [0, 5, 6])
def test_win_rate_needs_one_sample_to_compare_with(n):
    """Pins: NaN for n of the size of the pool, garbage above it."""
    with pytest.raises(ValueError, match=rf"`n` must be .* 4.*n={n}"):
        per_pool(formulas.best_of_n_win_rate, [POOLS["distinct"]], n)
