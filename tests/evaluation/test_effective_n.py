"""Effective N against enumeration, simulation and its own intervals."""

import decimal
import fractions
import itertools

import numpy as np
import pytest
import scipy.special
import scipy.stats

from keras_bond.evaluation import effective_n
from keras_bond.evaluation.log_quantile import expected_harmonic
from keras_bond.evaluation.log_quantile import mean_harmonic
from keras_bond.evaluation.log_quantile import n_from_harmonic

pytestmark = pytest.mark.one_backend

LEVELS = np.array([0.0, 1.0, 2.0])
INITIAL = np.array([0.5, 0.3, 0.2])


def all_pools(k):
    """Every pool of k draws from the initial policy, with its probability."""
    draws = np.array(list(itertools.product(range(len(INITIAL)), repeat=k)))
    return LEVELS[draws], INITIAL[draws].prod(axis=1)


def exact_harmonic(policy, k):
    """Mean of the k-term log-series, quantiles uniform within tied groups."""
    high = np.cumsum(INITIAL)
    middles = (np.arange(2000) + 0.5) / 2000
    u = high[:, None] - INITIAL[:, None] * middles
    series = -sum((1 - u) ** m / m for m in range(1, k + 1))
    return policy @ series.mean(axis=1)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize(
    "policy", [INITIAL, [0.2, 0.3, 0.5], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
)
def test_mean_harmonic_of_tied_rewards_is_exact_over_all_pools(policy, k):
    """Pins: ties as wins, losses or halves; one place too many among t."""
    policy = np.array(policy)
    pools, probability = all_pools(k)
    rewards = np.tile(LEVELS, (len(pools), 1)).astype("float32")
    total = 0.0
    for level, mass in enumerate(policy):
        mean = mean_harmonic(rewards[:, level : level + 1], pools)
        total += mass * (probability @ mean)
    assert total == pytest.approx(exact_harmonic(policy, k), abs=1e-6)


@pytest.mark.parametrize("k", [2, 4])
def test_the_initial_policy_is_worth_one_sample_whatever_its_ties(k):
    """Pins: half a win for each tie, which gives it an N of up to 1.44."""
    pools, probability = all_pools(k + 1)
    mean = mean_harmonic(pools[:, :1], pools[:, 1:])
    assert n_from_harmonic(probability @ mean, k) == pytest.approx(1, abs=1e-9)


def test_a_constant_reward_is_worth_one_sample():
    estimate = effective_n(np.ones((5, 2)), np.ones((5, 8)))
    assert estimate.value == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_best_of_n_is_worth_n(n):
    """Pins: `<` for `<=`, a sign, another k. Simulated picks.

    The interval of confidence 0.9999 is missed once in about 10,000.
    """
    generator = np.random.default_rng(n)
    initial = generator.normal(size=(800, 8))
    picks = generator.normal(size=(800, 4, n)).max(axis=-1)
    estimate = effective_n(picks, initial, confidence=0.9999)
    assert estimate.low < n < estimate.high
    assert estimate.high - estimate.low < n


@pytest.mark.parametrize(
    "transform", [lambda x: x**3, lambda x: 1e6 + 1e-3 * x]
)
def test_effective_n_knows_ranks_only(transform):
    generator = np.random.default_rng(0)
    policy = generator.integers(1, 8, size=(20, 3)) * 1.0
    initial = generator.integers(0, 7, size=(20, 6)) * 1.0
    plain = effective_n(policy, initial)
    assert effective_n(transform(policy), transform(initial)) == plain
    assert plain.value > 1


def test_intervals_cover_as_often_as_they_say():
    """Pins: samples taken for independent, which covers far too seldom.

    Half the prompts are solved by Best-of-8, half by the initial policy. Of 200
    intervals of 95 %, 177 to 199 cover with probability 0.9999.
    """
    repetitions, prompts, k = 200, 80, 8
    generator = np.random.default_rng(0)
    powers = np.array([1.0, 8.0])
    means = [expected_harmonic(n, k) for n in powers]
    truth = n_from_harmonic(np.mean(means), k)
    covered = 0
    for repetition in range(repetitions):
        n = generator.choice(powers, size=(prompts, 1))
        picks = generator.uniform(size=(prompts, 8)) ** (1 / n)
        initial = generator.uniform(size=(prompts, k))
        estimate = effective_n(
            picks, initial, num_resamples=150, seed=repetition
        )
        covered += estimate.low <= truth <= estimate.high
    low, high = scipy.stats.binom(repetitions, 0.95).ppf([5e-5, 1 - 5e-5])
    assert low <= covered <= high


def test_a_policy_beyond_the_pool_is_infinite_and_a_hopeless_one_zero():
    """Pins: rounding that makes a huge number of one that always wins."""
    high, low = np.full((4, 2), 9.0), np.zeros((4, 7))
    assert effective_n(high, low).high == np.inf
    assert effective_n(low, high).value < 1e-6


def test_bad_arguments_are_refused_by_name():
    rewards = np.ones((3, 2))
    for arguments, message in (
        ((rewards, np.ones((3, 1))), "`reference_rewards` must hold .*: 1 s"),
        ((rewards, np.ones((4, 8))), r"`reference_rewards` must .*\(4, 8\)"),
        ((rewards, rewards * np.inf), "`reference_rewards` must be finite"),
        ((rewards, rewards, 1.5), "`confidence` must be .*1.5"),
        ((rewards * np.nan, rewards), "`rewards` must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            effective_n(*arguments)


ns = pytest.mark.parametrize("n", [0.3, 1.0, 1.5, 2.0, 4.0, 16.0])


@ns
@pytest.mark.parametrize("k", [1, 2, 4, 16, 64])
def test_expected_harmonic_is_the_mean_over_the_beta_binomial(n, k):
    """Pins: the closed form; the number beaten is Beta-binomial(k, N, 1)."""
    c = np.arange(k + 1)
    statistic = scipy.special.digamma(c + 1) - scipy.special.digamma(k + 1)
    expected = scipy.stats.betabinom(k, n, 1).pmf(c) @ statistic
    assert expected_harmonic(n, k) == pytest.approx(expected, rel=1e-9)


@ns
@pytest.mark.parametrize("k", [1, 2, 16, 256])
def test_harmonic_inversion_comes_back(n, k):
    """Pins: a bisection that goes the wrong way or stops early."""
    mean = expected_harmonic(n, k)
    assert n_from_harmonic(mean, k) == pytest.approx(n, rel=1e-9)


@pytest.mark.parametrize("mean", [-0.999, -0.5, -0.01])
def test_harmonic_inversion_lies_between_its_two_limits(mean):
    """One sample in the pool is the win rate, very many the log-quantile."""
    win_rate = 1 + mean
    assert n_from_harmonic(mean, 1) == pytest.approx(
        win_rate / (1 - win_rate), rel=1e-6
    )
    assert n_from_harmonic(mean, 10**5) == pytest.approx(-1 / mean, rel=1e-4)


@ns
def test_the_log_quantile_of_best_of_n_is_minus_one_over_n(n):
    """Pins: the statistic that N is read from, by SciPy's integral."""
    log_quantile = scipy.stats.beta(n, 1).expect(np.log)
    assert -1 / log_quantile == pytest.approx(n, rel=1e-6)


def test_policies_that_always_win_or_lose_are_infinite_or_zero():
    """Pins: a division by zero at the ends of the scale."""
    assert n_from_harmonic(0.0, 4) == np.inf
    assert n_from_harmonic(-25 / 12, 4) < 1e-6


def test_rewards_that_are_no_numbers_are_refused():
    """Pins: numbers under masks, real parts, texts and dates as rewards."""
    masked = np.ma.array(np.ones((2, 3)), mask=[[0, 0, 0], [0, 1, 0]])
    for wrong in (masked, [masked[0], masked[1]]):
        with pytest.raises(ValueError, match=r"finite numbers.*rewards\[1\]"):
            effective_n(wrong, np.ones((2, 4)))
    text = [["1", "2"]]
    dates = np.array(text, dtype="datetime64[Y]")
    objects = np.array([["1", 2]], dtype=object)
    for wrong in (
        np.ones((1, 2), complex),
        text,
        objects,
        dates,
        dates - dates,
    ):
        with pytest.raises(TypeError, match="`rewards` must be numbers"):
            effective_n(wrong, np.ones((1, 4)))
    decimals = [[decimal.Decimal(1), fractions.Fraction(2)]] * 2
    assert effective_n(decimals, [[1, 2, 3]] * 2).value > 0
