"""Intervals over prompts, against all resamples of the prompts."""

import itertools

import numpy as np
import pytest

from keras_bond.evaluation.bootstrap import Estimate
from keras_bond.evaluation.bootstrap import bootstrap

pytestmark = pytest.mark.one_backend


def mean(*values):
    return values


@pytest.mark.parametrize("confidence", [0.6, 0.9])
def test_interval_is_that_of_all_resamples_of_the_prompts(confidence):
    """Pins: wrong tails, or prompts drawn without replacement.

    Of 5 prompts there are 3125 resamples; 20,000 draws miss a tail by more than
    0.014 with probability below 1e-4.
    """
    prompts = np.array([0.0, 1.0, 3.0, 7.0, 12.0])
    resamples = np.array(list(itertools.product(prompts, repeat=5))).mean(1)
    tail = (1 - confidence) / 2
    (result,) = bootstrap(mean, prompts[:, None], confidence, 20_000, 0)
    for found, level in ((result.low, tail), (result.high, 1 - tail)):
        least, most = np.quantile(
            resamples, [level - 0.014, level + 0.014], method="inverted_cdf"
        )
        assert least <= found <= most
    assert result.value == prompts.mean()


def test_what_belongs_to_a_prompt_stays_together():
    """Pins: columns resampled apart, which forgets that they are pairs."""
    quality = np.random.default_rng(0).normal(size=50)
    (sum_,) = bootstrap(
        lambda a, b: (a + b,), np.stack([quality, -quality], 1), 0.95, 200, 0
    )
    assert abs(sum_.low) < 1e-9 and abs(sum_.high) < 1e-9


def test_a_higher_confidence_is_wider_and_a_seed_repeats():
    values = np.random.default_rng(0).normal(size=(30, 2))
    narrow = bootstrap(mean, values, 0.5, 500, 0)
    wide = bootstrap(mean, values, 0.99, 500, 0)
    for inner, outer in zip(narrow, wide):
        assert outer.low < inner.low < inner.value < inner.high < outer.high
    assert bootstrap(mean, values, 0.5, 500, 0) == narrow
    assert bootstrap(mean, values, 0.5, 500, 1) != narrow


def test_infinite_statistics_do_not_become_nan():
    """Pins: interpolation between two infinite resamples."""
    (result,) = bootstrap(lambda x: (np.inf,), np.ones((5, 1)), 0.95, 50, 0)
    assert result == Estimate(np.inf, np.inf, np.inf)


def test_an_estimate_prints_as_in_a_report():
    assert str(Estimate(0.7, 0.65, 0.7501)) == "0.700 [0.650, 0.750]"


@pytest.mark.parametrize(
    "prompts, confidence, num_resamples, message",
    [
        (1, 0.95, 100, "`rewards` must hold at least 2 prompts.*1 prompt"),
        (9, 95, 100, "`confidence` must be .*Received: confidence=95"),
        (9, 0.0, 100, "`confidence` must be .*Received: confidence=0.0"),
        (9, 1.0, 100, "`confidence` must be .*Received: confidence=1.0"),
        (9, 0.95, 0, "`num_resamples` must be .*num_resamples=0"),
        (9, 0.95, 1e3, "`num_resamples` must be .*num_resamples=1000.0"),
        (9, 0.95, 10**18, "`num_resamples` must be .*=1000000000000000000"),
    ],
)
def test_bad_arguments_are_refused(prompts, confidence, num_resamples, message):
    """Pins: an interval of one prompt, [x, x], and 95 taken for 0.95."""
    with pytest.raises(ValueError, match=message):
        bootstrap(mean, np.ones((prompts, 1)), confidence, num_resamples, 0)


@pytest.mark.parametrize("seed", [-1, "a", 1.5, None])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="`seed` must be an integer of at"):
        bootstrap(mean, np.ones((9, 1)), 0.95, 10, seed)
