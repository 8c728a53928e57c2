"""The Best-of-N frontier and what a policy spends above it."""

import doctest
import importlib
import math

import numpy as np
import pytest
import scipy.stats

from keras_bond.evaluation import best_of_n_frontier
from keras_bond.evaluation import excess_kl

NS = (1, 2, 4, 8)


def least_kl(n):
    return math.log(n) - (n - 1) / n


def binary_row(n, rare=0.2):
    """Exact Best-of-N of a reward that is 1 with probability `rare`."""
    success = 1 - (1 - rare) ** n
    kl = success * math.log(success / rare)
    kl += (1 - success) * math.log((1 - success) / (1 - rare))
    win_rate = 0.5 + (success - rare) / 2
    return {"n": n, "reward": success, "win_rate": win_rate, "kl": kl}


@pytest.fixture(scope="module")
def continuous():
    """A frontier of rewards without ties."""
    pool = np.tile(np.arange(64), (5, 1))
    return best_of_n_frontier(pool, ns=NS)


BINARY = [binary_row(n) for n in NS]


def test_rows_without_ties_are_the_closed_forms(continuous):
    """Pins: a sum over prompts for the mean, or N mixed up between rows."""
    assert [row["n"] for row in continuous] == list(NS)
    for row in continuous:
        n = row["n"]
        # The largest of n out of 1 ... 64 is n * 65 / (n + 1) on average.
        assert row["reward"] == pytest.approx(n * 65 / (n + 1) - 1, rel=1e-5)
        assert row["win_rate"] == pytest.approx(n / (n + 1), rel=1e-5)
        assert row["kl"] == pytest.approx(least_kl(n), abs=2e-3)


def test_rows_of_binary_rewards_are_exact():
    """Pins: ties as wins, and prompts that are pooled before the average.

    Of 64 samples the best of n misses all `right` ones hypergeometrically. It
    beats one more sample half the time, plus half the difference of means.
    """
    right = np.array([0, 5, 13, 32, 64])
    pool = np.arange(64) < right[:, None]
    for row in best_of_n_frontier(pool, ns=NS):
        n = row["n"]
        success = 1 - scipy.stats.hypergeom(64, right, n).pmf(0)
        gain = (success - right / 64).mean()
        kls = [binary_row(n, share)["kl"] for share in right[1:-1] / 64]
        assert row["reward"] == pytest.approx(success.mean(), abs=1e-5)
        assert row["win_rate"] == pytest.approx(0.5 + gain / 2, abs=1e-5)
        assert row["kl"] == pytest.approx(sum(kls) / 5, abs=1e-5)


@pytest.mark.parametrize("n", [1.0, 1.2, 2.0, 3.0, 5.5, 8.0])
def test_best_of_any_real_n_has_no_excess_without_ties(continuous, n):
    """Pins: rows interpolated where the KL is known exactly."""
    excess = excess_kl(continuous, kl=0.1 + least_kl(n), win_rate=n / (n + 1))
    assert excess == pytest.approx(0.1, abs=1e-9)


@pytest.mark.parametrize("axis", ["win_rate", "reward"])
def test_rows_of_the_frontier_have_no_excess(continuous, axis):
    """Pins: N without ties put in where there are ties."""
    for frontier in (continuous, BINARY, BINARY[::-1]):
        for row in frontier:
            excess = excess_kl(frontier, row["kl"], **{axis: row[axis]})
            assert excess == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("axis", ["win_rate", "reward"])
@pytest.mark.parametrize("n, most", [(1.3, 0.1), (1.7, 0.05), (6, 0.05)])
def test_between_rows_with_ties_the_error_is_that_promised(axis, n, most):
    """Pins: the KL interpolated instead of its root, 180 % off at N = 1.3."""
    row = binary_row(n)
    excess = excess_kl(BINARY, row["kl"], **{axis: row[axis]})
    assert abs(excess) < most * row["kl"]


@pytest.mark.parametrize("n", [1.3, 3.0, 6.0])
def test_without_ties_equal_reward_and_equal_win_rate_agree(continuous, n):
    """The reward is the rank here, which makes reward and win rate one."""
    reward = n * 65 / (n + 1) - 1
    excess = excess_kl(continuous, least_kl(n), reward=reward)
    assert abs(excess) < 0.08 * least_kl(n)


def test_a_constant_reward_puts_everything_in_excess():
    frontier = best_of_n_frontier(np.ones((5, 64)), ns=NS)
    assert excess_kl(frontier, 0.3, win_rate=0.5) == pytest.approx(0.3)
    assert excess_kl(frontier, 0.3, reward=1.0) == pytest.approx(0.3)


@pytest.mark.parametrize("frontier", [BINARY, "continuous"])
def test_beyond_the_frontier_is_refused_by_name(frontier, request):
    """Pins: the last row's KL for whatever lies beyond it."""
    if isinstance(frontier, str):
        frontier = request.getfixturevalue(frontier)
    with pytest.raises(ValueError, match="`win_rate` must lie .*win_rate=0.95"):
        excess_kl(frontier, 0.3, win_rate=0.95)
    with pytest.raises(ValueError, match="`win_rate` must lie .*win_rate=0.4"):
        excess_kl(frontier, 0.3, win_rate=0.4)
    with pytest.raises(ValueError, match="`reward` must lie .*reward=99"):
        excess_kl(frontier, 0.3, reward=99)


@pytest.mark.parametrize("given", [{}, {"win_rate": 0.6, "reward": 0.3}])
def test_exactly_one_thing_is_held_equal(given):
    with pytest.raises(ValueError, match="one of `win_rate` and `reward`"):
        excess_kl(BINARY, 0.3, **given)


def test_a_pool_that_cannot_serve_is_refused():
    with pytest.raises(ValueError, match="`rewards` must hold more .* pool of"):
        best_of_n_frontier(np.ones((2, 8)), ns=(8,))
    with pytest.raises(ValueError, match="`rewards` must be finite"):
        best_of_n_frontier([[1.0, np.nan, 2.0]], ns=(1,))


@pytest.mark.parametrize("name", ["comparison", "effective_n", "frontier"])
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(f"keras_bond.evaluation.{name}")
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
