"""The Best-of-N frontier, and the KL that a policy spends beyond it."""

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


@pytest.mark.parametrize("offset", [1e6, -1e9])
def test_an_offset_of_the_reward_moves_the_reward_alone(offset):
    """Pins: float32, which cannot tell 1,000,000.01 from 1,000,000.02."""
    pool = np.random.default_rng(0).integers(0, 9, size=(6, 16)) / 100
    plain = best_of_n_frontier(pool, ns=NS)
    for row, moved in zip(plain, best_of_n_frontier(pool + offset, ns=NS)):
        assert moved["reward"] - offset == pytest.approx(
            row["reward"], abs=1e-6
        )
        assert (moved["win_rate"], moved["kl"]) == (row["win_rate"], row["kl"])


@pytest.mark.parametrize("n", [1.0, 1.2, 2.0, 3.0, 5.5, 8.0, 16.0])
def test_best_of_any_real_n_has_no_excess_without_ties(n):
    """Pins: `N - 1` for `(N - 1) / N`, a sign, or the N of another statistic.

    Its quantiles have the distribution `Beta(N, 1)`, that of the largest of N
    uniform numbers; the initial policy's are uniform.
    """
    quantiles = scipy.stats.beta(n, 1)
    kl, win_rate = -quantiles.entropy(), quantiles.expect(lambda u: u)
    assert kl == pytest.approx(least_kl(n), abs=1e-9)
    assert excess_kl(win_rate, 0.1 + kl) == pytest.approx(0.1, abs=1e-6)


def test_rows_of_the_frontier_have_no_excess_without_ties(continuous):
    for row in continuous:
        excess = excess_kl(row["win_rate"], row["kl"])
        assert excess == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("win_rate", [0.5, 0.4, 0.0])
def test_without_a_gain_all_kl_is_excess(win_rate):
    """Pins: a KL that Best-of-N with N below 1 would need."""
    assert excess_kl(win_rate, 0.3) == 0.3


def test_excess_of_arrays_is_that_of_their_entries():
    """And a policy that always wins is infinitely better than Best-of-N."""
    win_rates = np.array([[0.2, 0.5, 0.75], [0.9, 2 / 3, 1.0]])
    kls = np.linspace(0, 1, 6).reshape(2, 3)
    excess = excess_kl(win_rates, kls)
    assert excess[1, 2] == -np.inf
    expected = [excess_kl(w, k) for w, k in zip(win_rates.flat, kls.flat)]
    assert excess.ravel().tolist() == expected
    assert isinstance(expected[0], float)


@pytest.mark.parametrize("win_rate", [65.0, -0.1, math.nan, [0.5, 2.0]])
def test_an_impossible_win_rate_is_refused_by_name(win_rate):
    """Pins: NaN from a percentage."""
    with pytest.raises(ValueError, match="`win_rate` must be .*win_rate="):
        excess_kl(win_rate, 0.3)


def test_a_pool_that_cannot_serve_is_refused():
    with pytest.raises(ValueError, match="`rewards` must hold more .* pool of"):
        best_of_n_frontier(np.ones((2, 8)), ns=(8,))
    with pytest.raises(ValueError, match="`rewards` must be finite"):
        best_of_n_frontier([[1.0, np.nan, 2.0]], ns=(1,))
    for digits in (400, 5000):
        with pytest.raises(ValueError, match=r"ns=\(1, 2\*\*.* or beyond\)$"):
            best_of_n_frontier(np.ones((2, 8)), ns=(1, 10**digits))


@pytest.mark.parametrize("name", ["comparison", "frontier", "log_quantile"])
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(f"keras_bond.evaluation.{name}")
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_rewards_of_0_and_1_give_pass_at_k():
    """The estimate of Chen et al. (2021), by its definition."""
    right = np.arange(8) < np.arange(9)[:, None]
    rng = np.random.default_rng(0)
    pool = rng.permuted(right.astype(float), axis=1)
    for row in best_of_n_frontier(pool, ns=(1, 2, 5)):
        k = row["n"]
        wrong = [math.comb(8 - c, k) / math.comb(8, k) for c in range(9)]
        np.testing.assert_allclose(row["reward"], 1 - np.mean(wrong), atol=1e-6)
