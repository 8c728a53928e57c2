"""The meter of waste: what it is worth, and when it is not known."""

import math

import numpy as np
import pytest
import scipy.stats
from keras import ops

from keras_bond.formulas.rank_correlations import mid_ranks
from keras_bond.formulas.rank_correlations import rank_correlation


def correlation(rewards, log_ratios, rounding=0.0, mask=None):
    shape = np.shape(log_ratios)
    ranks = mid_ranks(ops.convert_to_tensor(rewards, "float32"))
    mask = np.ones(shape[0], bool) if mask is None else np.array(mask)
    found = rank_correlation(
        ranks[:, : shape[1]],
        ops.convert_to_tensor(log_ratios, "float32"),
        ops.convert_to_tensor(np.broadcast_to(rounding, shape), "float32"),
        ops.convert_to_tensor(mask),
    )
    return float(found)


def test_ranks_are_those_of_scipy():
    rewards = np.random.default_rng(0).integers(0, 4, (5, 6))
    found = ops.convert_to_numpy(mid_ranks(ops.convert_to_tensor(rewards)))
    expected = scipy.stats.rankdata(rewards, axis=1)
    np.testing.assert_array_equal(found, 2 * (expected - 1))


def test_the_value_is_that_of_a_loop():
    """Four samples of the policy, ranked among seven; one prompt is a gap.

    Pins: means over the batch instead of within prompts.
    """
    generator = np.random.default_rng(1)
    rewards = generator.integers(0, 3, (6, 7)).astype("float64")
    # Prompts differ by more than their samples.
    ratios = generator.normal(size=(6, 4)) + 5.0 * generator.normal(size=(6, 1))
    rewards[2], ratios[2] = 9.0, math.nan
    mask = [True, True, False, True, True, True]
    pairs = []
    for i in np.flatnonzero(mask):
        ranks = scipy.stats.rankdata(rewards[i])[:4]
        pairs += list(zip(ranks - ranks.mean(), ratios[i] - ratios[i].mean()))
    x, y = np.transpose(pairs)
    expected = (x @ y) / math.sqrt((x @ x) * (y @ y))
    assert 0.02 < abs(expected) < 0.9
    found = correlation(rewards, ratios, mask=mask)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("n", "expected"), [(2, 0.707), (4, 0.775), (8, 0.816)]
)
def test_best_of_n_has_the_documented_value(n, expected):
    """`√3/2 √(n / (n+1))`, about 0.8; 20,000 prompts."""
    u = np.random.default_rng(2).random((20_000, n))
    assert correlation(u, 3.0 * np.log(u)) == pytest.approx(expected, abs=0.02)
    assert correlation(u, -u) < -0.8


def test_it_is_the_waste_near_the_anchor():
    """KL over the least KL of the same win rate is `1 / corr²`.

    By enumeration of a fine grid of quantiles; noise of the log-ratio, which
    the reward does not explain, is what costs KL.
    """
    u = (np.arange(400) + 0.5) / 400
    noise = np.array([-1.0, 1.0])
    tilt, size = 0.02, 0.01

    def kl_and_win_rate(log_ratio):
        p = np.exp(log_ratio)
        p /= p.sum()
        return np.sum(p * np.log(p * p.size)), np.sum(p * u[:, None])

    log_ratio = tilt * u[:, None] + size * noise
    kl, win_rate = kl_and_win_rate(log_ratio)
    least, same = kl_and_win_rate(tilt * u[:, None] + 0.0 * noise)
    assert win_rate == pytest.approx(same, abs=1e-6)
    flat = np.broadcast_to(u[:, None], log_ratio.shape).ravel()
    corr = np.corrcoef(flat, log_ratio.ravel())[0, 1]
    assert kl / least == pytest.approx(1 / corr**2, rel=1e-3)
    assert kl / least > 2


def test_it_is_unknown_where_nothing_can_be_compared():
    rewards, ratios = np.array([[0.0, 1.0, 2.0]]), np.array([[0.1, 0.5, 0.2]])
    assert not math.isnan(correlation(rewards, ratios))
    # The policy is the anchor, exactly or but for rounding.
    assert math.isnan(correlation(rewards, 0 * ratios))
    assert math.isnan(correlation(rewards, ratios, [[0.4, 0.1, 0.2]]))
    assert not math.isnan(correlation(rewards, ratios, [[0.01, 0.0, 0.02]]))
    # Every sample of a prompt has the same reward, or no score.
    assert math.isnan(correlation([[2.0, 2.0, 2.0]], ratios))
    assert math.isnan(correlation(rewards, ratios, mask=[False]))
    assert math.isnan(correlation([[5.0, 1.0]], [[0.5]]))
