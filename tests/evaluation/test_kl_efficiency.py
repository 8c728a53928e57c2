"""Waste and efficiency of policies whose KL is known exactly."""

import math

import numpy as np
import pytest

from keras_bond import formulas
from keras_bond.evaluation import kl_efficiency


def simulate(inverse_cdf, prompts=600, k=32):
    """Rewards of a policy with the given quantiles, and of its start."""
    generator = np.random.default_rng(0)
    rewards = inverse_cdf(generator.uniform(size=(prompts, 4)))
    return rewards, generator.uniform(size=(prompts, k))


@pytest.mark.parametrize("n", [1.5, 4.0])
def test_best_of_n_wastes_nothing(n):
    """Pins: another least KL. False alarm of the intervals: 1e-4 each."""
    rewards, start = simulate(lambda u: u ** (1 / n))
    kl = math.log(n) - (n - 1) / n
    result = kl_efficiency(rewards, start, kl, confidence=0.9999)
    assert result.effective_n.low < n < result.effective_n.high
    assert result.waste.low < 0 < result.waste.high
    assert result.efficiency.low < 1 < result.efficiency.high
    assert result.waste.high - result.waste.low < 0.5


def test_waste_is_the_kl_to_best_of_n():
    """Pins: the identity, for a policy far off the curve.

    Uniform on the better half: KL log 2, and E[log u] = log 2 - 1. The KL to
    Best-of-N̂ by quadrature. False alarm 1e-4 each.
    """
    rewards, start = simulate(lambda u: 0.5 + u / 2)
    n = 1 / (1 - math.log(2))
    u = (np.arange(100_000) + 0.5) / 200_000 + 0.5
    waste = np.mean(np.log(2 / (n * u ** (n - 1))))
    result = kl_efficiency(rewards, start, math.log(2), confidence=0.9999)
    assert result.effective_n.low < n < result.effective_n.high
    assert 0 < result.waste.low < waste < result.waste.high
    share = 1 - waste / math.log(2)
    assert result.efficiency.low < share < result.efficiency.high < 1


def test_with_ties_the_least_kl_is_still_a_lower_bound():
    """Pins: a policy that has not moved charged with having gained.

    Binary rewards, 5 % of them 1; the mean over very many prompts.
    """
    generator = np.random.default_rng(0)
    rewards = generator.uniform(size=(20_000, 1)) < 0.05
    start = generator.uniform(size=(20_000, 8)) < 0.05
    result = kl_efficiency(rewards, start, 0.0, num_resamples=2)
    assert result.waste.value == pytest.approx(0, abs=1e-3)


def test_the_numbers_belong_together():
    rewards, start = simulate(lambda u: u**0.5, prompts=50)
    kl = np.random.default_rng(1).uniform(0.2, 0.6, size=50)
    result = kl_efficiency(rewards, start, kl)
    least = formulas.continuous_best_of_n_kl(result.effective_n.value)
    assert result.kl.value == pytest.approx(kl.mean())
    assert result.waste.value == pytest.approx(kl.mean() - least)
    assert result.efficiency.value == pytest.approx(least / kl.mean())
    assert result.kl.low < result.kl.value < result.kl.high


def test_one_number_is_the_kl_of_every_prompt():
    rewards, start = simulate(lambda u: u, prompts=20)
    single = kl_efficiency(rewards, start, 0.5)
    assert single == kl_efficiency(rewards, start, [0.5] * 20)
    assert single.kl.low == single.kl.high == 0.5


def test_a_policy_that_has_not_moved_has_no_efficiency():
    """Pins: a division by zero in the report of the first epoch."""
    rewards, start = simulate(lambda u: u, prompts=20)
    result = kl_efficiency(rewards, start, 0.0)
    assert math.isnan(result.efficiency.value)
    assert math.isfinite(result.waste.value)


@pytest.mark.parametrize(
    "kl", [[0.1, 0.2], [[0.1]] * 3, np.nan, [0, 1, np.inf]]
)
def test_a_kl_that_is_not_one_a_prompt_is_refused(kl):
    """Pins: a broadcast of KLs a sample over prompts."""
    with pytest.raises(ValueError, match="`kl` must be .*Received: kl=.* 3 "):
        kl_efficiency(np.ones((3, 2)), np.ones((3, 4)), kl)


def test_bad_rewards_are_refused_by_name():
    with pytest.raises(ValueError, match="`reference_rewards` must hold"):
        kl_efficiency(np.ones((3, 2)), np.ones((3, 1)), 0.1)
    with pytest.raises(ValueError, match="`rewards` must be finite"):
        kl_efficiency(np.full((3, 2), np.nan), np.ones((3, 4)), 0.1)
    with pytest.raises(ValueError, match="`confidence` must be"):
        kl_efficiency(np.ones((3, 2)), np.ones((3, 4)), 0.1, confidence=0)
