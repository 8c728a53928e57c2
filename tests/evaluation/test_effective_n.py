"""Effective N against enumeration, simulation and its own intervals."""

import itertools

import numpy as np
import pytest
import scipy.stats

from keras_bond import formulas
from keras_bond.evaluation import effective_n
from keras_bond.evaluation.effective_n import log_quantile_meter

METHODS = ["log_quantile", "win_rate"]
LEVELS = np.array([0.0, 1.0, 2.0])
START = np.array([0.5, 0.3, 0.2])


def all_pools(k):
    """Every pool of k draws from the start, with its probability."""
    draws = np.array(list(itertools.product(range(len(START)), repeat=k)))
    return LEVELS[draws], START[draws].prod(axis=1)


def exact_harmonic(policy, k):
    """Mean of the k-term log-series, quantiles uniform within tied groups."""
    high = np.cumsum(START)
    middles = (np.arange(2000) + 0.5) / 2000
    u = high[:, None] - START[:, None] * middles
    series = -sum((1 - u) ** m / m for m in range(1, k + 1))
    return policy @ series.mean(axis=1)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize(
    "policy", [START, [0.2, 0.3, 0.5], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
)
def test_meter_of_tied_rewards_is_exact_over_all_pools(policy, k):
    """Pins: ties as wins, losses or halves; one place too many among t."""
    policy = np.array(policy)
    pools, probability = all_pools(k)
    rewards = np.tile(LEVELS, (len(pools), 1)).astype("float32")
    total = 0.0
    for level, mass in enumerate(policy):
        mean, _ = log_quantile_meter(rewards[:, level : level + 1], pools)
        total += mass * (probability @ mean)
    assert total == pytest.approx(exact_harmonic(policy, k), abs=1e-6)


@pytest.mark.parametrize("k", [2, 4])
def test_the_start_is_worth_one_sample_whatever_its_ties(k):
    """Pins: half a win for each tie, which values the start at up to 1.44."""
    pools, probability = all_pools(k + 1)
    mean, to_n = log_quantile_meter(pools[:, :1], pools[:, 1:])
    assert to_n(probability @ mean) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_reward_is_worth_one_sample(method):
    estimate = effective_n(np.ones((5, 2)), np.ones((5, 8)), method)
    assert estimate.value == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_best_of_n_is_worth_n(n):
    """Pins: `<` for `<=`, a sign, another k. Simulated picks.

    The interval of confidence 0.9999 is missed once in about 10,000.
    """
    generator = np.random.default_rng(n)
    start = generator.normal(size=(800, 8))
    picks = generator.normal(size=(800, 4, n)).max(axis=-1)
    for method in METHODS:
        estimate = effective_n(picks, start, method, confidence=0.9999)
        assert estimate.low < n < estimate.high
        assert estimate.high - estimate.low < n


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("transform", [lambda x: x**3, np.exp])
def test_effective_n_knows_ranks_only(method, transform):
    generator = np.random.default_rng(0)
    mine = generator.integers(1, 8, size=(20, 3)) * 1.0
    start = generator.integers(0, 7, size=(20, 6)) * 1.0
    plain = effective_n(mine, start, method)
    assert effective_n(transform(mine), transform(start), method) == plain
    assert plain.value > 1


@pytest.mark.parametrize("method", METHODS)
def test_intervals_cover_as_often_as_they_say(method):
    """Pins: samples taken for independent, which covers far too seldom.

    Half the prompts are solved by Best-of-8, half as before. Of 200 intervals
    of 95 %, 177 to 199 cover with probability 0.9999.
    """
    repetitions, prompts, k = 200, 80, 8
    generator = np.random.default_rng(0)
    powers = np.array([1.0, 8.0])
    if method == "win_rate":
        truth = formulas.n_from_win_rate(np.mean(powers / (powers + 1)))
    else:
        means = [formulas.expected_harmonic(n, k) for n in powers]
        truth = formulas.n_from_harmonic(np.mean(means), k)
    covered = 0
    for repetition in range(repetitions):
        n = generator.choice(powers, size=(prompts, 1))
        picks = generator.uniform(size=(prompts, 8)) ** (1 / n)
        start = generator.uniform(size=(prompts, k))
        estimate = effective_n(
            picks, start, method, num_resamples=150, seed=repetition
        )
        covered += estimate.low <= truth <= estimate.high
    low, high = scipy.stats.binom(repetitions, 0.95).ppf([5e-5, 1 - 5e-5])
    assert low <= covered <= high


@pytest.mark.parametrize("method", METHODS)
def test_a_policy_beyond_the_pool_is_infinite_and_a_hopeless_one_zero(method):
    """Pins: rounding that makes a huge number of one that always wins."""
    high, low = np.full((4, 2), 9.0), np.zeros((4, 7))
    assert effective_n(high, low, method).high == np.inf
    assert effective_n(low, high, method).value < 1e-6


def test_bad_arguments_are_refused_by_name():
    rewards = np.ones((3, 2))
    for arguments, message in (
        ((rewards, np.ones((3, 1))), "`reference_rewards` must hold .*: 1 s"),
        ((rewards, np.ones((4, 8))), r"`reference_rewards` must .*\(4, 8\)"),
        ((rewards, rewards * np.inf), "`reference_rewards` must be finite"),
        ((rewards, rewards, "median"), "`method` must be .*'median'"),
        ((rewards, rewards, "win_rate", 1.5), "`confidence` must be .*1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            effective_n(*arguments)


def test_one_sample_of_the_start_is_enough_for_the_win_rate():
    estimate = effective_n([[1.0], [0.0]], [[0.0], [0.0]], "win_rate")
    assert estimate.value == pytest.approx(3)
