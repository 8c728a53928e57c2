"""The Best-of-N distribution against brute force, ties included."""

import numpy as np
import pytest
from keras import ops

from keras_bond import formulas
from tests.formulas import distributions


def log(values):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(values)).astype("float32")


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", distributions.REWARDS)
def test_it_is_that_of_the_best_of_n_draws(kind, n):
    """Pins: p_le and p_lt swapped, N - 1 for N, ties left out of factor B."""
    rewards = distributions.REWARDS[kind]
    probs = formulas.best_of_n_distribution(
        distributions.ANCHOR.astype("float32"), rewards.astype("float32"), n
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(probs),
        distributions.best_of_n_by_brute_force(rewards, n),
        atol=2e-6,
    )


def test_quantiles_count_themselves_in_le_and_not_in_lt():
    """Pins: `<` for `<=`."""
    p_le, p_lt = formulas.quantiles(
        ops.array([0.1, 0.2, 0.3, 0.4]), ops.array([5.0, 1.0, 1.0, 0.0])
    )
    np.testing.assert_allclose(ops.convert_to_numpy(p_le), [1, 0.9, 0.9, 0.4])
    np.testing.assert_allclose(
        ops.convert_to_numpy(p_lt), [0.9, 0.4, 0.4, 0.0], atol=1e-7
    )


@pytest.mark.parametrize("n", [1.5, 2, 4, 16, 64])
@pytest.mark.parametrize("x", [0.0, 1e-6, 0.3, 0.9, 0.999, 1 - 1e-5])
def test_the_ratio_is_the_printed_sum(x, n):
    """`p_le^(N-1) Σ (p_lt/p_le)^(i-1)`, from no ties to nearly continuous.

    Pins: 0/0 where p_lt meets p_le, and a lost digit beside it.
    """
    p_le = 0.7
    result = formulas.log_best_of_n_ratio(log(p_le), log(x * p_le), n)
    expected = (n - 1) * np.log(p_le) + np.log((1 - x**n) / (1 - x))
    np.testing.assert_allclose(float(result), expected, rtol=1e-3, atol=1e-4)


def test_the_ratio_tends_to_n_in_the_continuous_limit():
    """Factor B lies in [1, N]: theorem 1."""
    same = formulas.log_best_of_n_ratio(log(0.5), log(0.5), 8)
    assert float(same) == pytest.approx(7 * np.log(0.5) + np.log(8), rel=1e-5)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("kind", ["distinct", "tied"])
def test_the_optimum_of_the_bond_reward_is_best_of_n(kind, n):
    """`∝ π_ref exp(r_BOND / β_BOND)`, β_BOND = 1/(N-1) (eqs. 8 and 9)."""
    rewards = distributions.REWARDS[kind]
    p_le, p_lt = (
        log(np.maximum(q, 1e-30))
        for q in (
            [distributions.ANCHOR[rewards <= r].sum() for r in rewards],
            [distributions.ANCHOR[rewards < r].sum() for r in rewards],
        )
    )
    reward = ops.convert_to_numpy(formulas.bond_reward(p_le, p_lt, n))
    probs = distributions.ANCHOR * np.exp(reward * (n - 1))
    np.testing.assert_allclose(
        probs / probs.sum(),
        distributions.best_of_n_by_brute_force(rewards, n),
        atol=1e-5,
    )
    short = formulas.bond_reward(p_le, p_lt, n, second_term=False)
    np.testing.assert_array_equal(ops.convert_to_numpy(short), p_le)
