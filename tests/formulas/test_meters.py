"""Closed forms of the Best-of-N curve, against quadrature and SciPy."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats

from keras_bond import formulas

ns = pytest.mark.parametrize("n", [0.3, 1.0, 1.5, 2.0, 4.0, 16.0])
# Middles of fine cells; the law of the quantiles of the start is uniform.
U = (np.arange(200_000) + 0.5) / 200_000
DENSITIES = {
    "uniform on the better half": 2.0 * (U > 0.5),
    "Beta(2, 3)": scipy.stats.beta(2, 3).pdf(U),
    "half the start, half the best tenth": 0.5 + 5.0 * (U > 0.9),
    "worse than the start": 2.0 * (1 - U),
}


def best_of_n_density(n):
    return n * U ** (n - 1)


def kl(density, other=1.0):
    """KL of densities on the unit interval; `other` is the start's."""
    ratio = np.where(density > 0, density / other, 1.0)
    return np.mean(density * np.log(ratio))


@ns
def test_kl_is_that_of_the_largest_of_n_uniform_numbers(n):
    """Pins: `N - 1` for `(N - 1) / N`, or a sign."""
    expected = -scipy.stats.beta(n, 1).entropy()
    result = formulas.continuous_best_of_n_kl(n)
    assert result == pytest.approx(expected, abs=1e-12)


@ns
def test_n_comes_back_from_win_rate_and_log_quantile(n):
    """Pins: an inverse of another statistic, by SciPy's integrals."""
    law = scipy.stats.beta(n, 1)
    win_rate = law.expect(lambda u: u)
    assert formulas.n_from_win_rate(win_rate) == pytest.approx(n, rel=1e-6)
    log_quantile = law.expect(np.log)
    assert formulas.n_from_log_quantile(log_quantile) == pytest.approx(
        n, rel=1e-6
    )


@ns
@pytest.mark.parametrize("k", [1, 2, 4, 16, 64])
def test_expected_harmonic_is_the_mean_over_the_beta_binomial(n, k):
    """Pins: the closed form; the number beaten is Beta-binomial(k, N, 1)."""
    c = np.arange(k + 1)
    statistic = scipy.special.digamma(c + 1) - scipy.special.digamma(k + 1)
    expected = scipy.stats.betabinom(k, n, 1).pmf(c) @ statistic
    result = formulas.expected_harmonic(n, k)
    assert result == pytest.approx(expected, rel=1e-9)


@ns
@pytest.mark.parametrize("k", [1, 2, 16, 256])
def test_harmonic_inversion_comes_back(n, k):
    """Pins: a bisection that goes the wrong way or stops early."""
    mean = formulas.expected_harmonic(n, k)
    assert formulas.n_from_harmonic(mean, k) == pytest.approx(n, rel=1e-9)


@pytest.mark.parametrize("mean", [-0.999, -0.5, -0.01])
def test_harmonic_inversion_lies_between_its_two_limits(mean):
    """One sample of the start is the win rate, very many the log-quantile."""
    assert formulas.n_from_harmonic(mean, 1) == pytest.approx(
        formulas.n_from_win_rate(1 + mean), rel=1e-6
    )
    assert formulas.n_from_harmonic(mean, 10**5) == pytest.approx(
        formulas.n_from_log_quantile(mean), rel=1e-4
    )


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES.keys())
def test_kl_of_any_policy_is_least_kl_plus_kl_to_best_of_n(density):
    """Pins: the identity that makes waste a number, by quadrature.

    `KL(π ‖ π_ref) = [log N - (N-1)/N] + KL(π ‖ π_BoN)`, `N = -1 / E[log u]`.
    """
    n = formulas.n_from_log_quantile(np.mean(density * np.log(U)))
    waste = kl(density, best_of_n_density(n))
    least = formulas.continuous_best_of_n_kl(n)
    assert waste > 0.01
    assert kl(density) == pytest.approx(least + waste, abs=1e-4)


@pytest.mark.parametrize("k, most", [(2, 0.014), (8, 0.003), (16, 0.0013)])
def test_a_small_pool_overrates_the_least_kl_by_no_more_than_promised(k, most):
    """Pins: the bound on the bias that `kl_efficiency` documents.

    The least KL at a given mean of `-Σ_{m<=k} (1-u)^m / m` is that of an
    exponential tilt; the bracket must not pass it by more.
    """
    statistic = -sum((1 - U) ** m / m for m in range(1, k + 1))
    overrated = []
    for strength in np.linspace(0.05, 6, 40):
        tilt = np.exp(strength * statistic)
        tilt /= tilt.mean()
        n = formulas.n_from_harmonic(np.mean(tilt * statistic), k)
        overrated.append(formulas.continuous_best_of_n_kl(n) - kl(tilt))
    assert 0.8 * most < max(overrated) < most


def test_policies_that_always_win_or_lose_are_infinite_or_zero():
    """Pins: a division by zero at the ends of the scale."""
    assert formulas.n_from_win_rate(1.0) == math.inf
    assert formulas.n_from_win_rate(0.0) == 0
    assert formulas.n_from_log_quantile(0.0) == math.inf
    assert formulas.n_from_harmonic(0.0, 4) == math.inf
    assert formulas.n_from_harmonic(-25 / 12, 4) < 1e-6
    assert formulas.continuous_best_of_n_kl(0) == math.inf
    assert formulas.continuous_best_of_n_kl(math.inf) == math.inf


@pytest.mark.parametrize(
    "name, call",
    [
        ("n", lambda: formulas.continuous_best_of_n_kl(-1.5)),
        ("win_rate", lambda: formulas.n_from_win_rate(65.0)),
        ("win_rate", lambda: formulas.n_from_win_rate(math.nan)),
        ("mean_log_quantile", lambda: formulas.n_from_log_quantile(0.5)),
        ("mean_harmonic", lambda: formulas.n_from_harmonic(0.1, 4)),
        ("mean_harmonic", lambda: formulas.n_from_harmonic(-1.6, 2)),
    ],
)
def test_impossible_statistics_are_refused_by_name(name, call):
    """Pins: a nonsensical N, or NaN, from an argument in the wrong unit."""
    with pytest.raises(ValueError, match=rf"`{name}` must .*Received: {name}="):
        call()
