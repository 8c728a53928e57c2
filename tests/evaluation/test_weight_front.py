"""The front of weights against exact enumeration, and what it chooses."""

import itertools
import math

import keras
import numpy as np
import pytest

import keras_bond
from examples import enumerable
from keras_bond.evaluation import WeightFront
from keras_bond.evaluation import plot_weight_front
from keras_bond.evaluation import weight_front
from keras_bond.evaluation.interpolation import _weighted_means
from keras_bond.evaluation.log_quantile import n_from_harmonic
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.training.test_interpolating import disturb

WORLD = enumerable.World(
    vocabulary_size=5, max_completion_length=2, num_prompts=1
)
REWARDS = enumerable.make_rewards(WORLD, seed=0)
COPIES, SAMPLES = 200, 12
WEIGHTS = (0.0, 0.5, 1.0, 1.75, 4.0)


def make_bond(reward=None, **arguments):
    """A trainer whose policy has moved by about as much as training would."""
    bond = keras_bond.Bond(
        enumerable.make_policy(WORLD, seed=0, num_layers=1, hidden_dim=16),
        reward or enumerable.Table(WORLD, REWARDS),
        **WORLD.lengths,
        seed=0,
        **{"reference": True, **arguments},
    )
    bond.compile(keras.optimizers.SGD(1e-5), **COMPILED_QUICKLY)
    disturb(bond.policy.trainable_variables, 8)
    return bond


@pytest.fixture(scope="module")
def bond():
    return make_bond()


def exact(probs, start, k):
    """What the front estimates, by enumeration.

    A sample equals some of the k that it is compared with; its place among
    them is drawn at random, so its quantile is uniform in `[p_lt, p_le]`.
    """
    p_le, p_lt = enumerable.quantiles(start, REWARDS)
    series = -sum(
        ((1 - p_lt) ** (m + 1) - (1 - p_le) ** (m + 1)) / (m * (m + 1))
        for m in range(1, k + 1)
    )
    harmonic = np.sum(probs * series / (p_le - p_lt), axis=1).mean()
    found = enumerable.measure(probs, start, REWARDS, n=2)
    return {
        "reward": found["reward"],
        "win_rate": found["win_rate"],
        "kl": found["kl_start"],
        "effective_n": n_from_harmonic(harmonic, k),
    }


def test_the_numbers_are_those_of_enumeration(bond):
    """Within 4.5 standard errors, from a bank and, at weight 4, direct ones.

    20 numbers of about normal distribution: another seed would fail with a
    probability of 1.4e-4. Pins: the initial samples' comparison with
    themselves, and importance weights of one of the two policies alone.
    """
    before = values_of(bond.variables)
    front = weight_front(
        bond,
        WORLD.prompts(COPIES),
        WEIGHTS,
        SAMPLES,
        batch_size=COPIES,
        min_effective_samples=11.0,
    )
    for a, b in zip(values_of(bond.variables), before):
        np.testing.assert_array_equal(a, b)
    assert [row["is_direct"] for row in front.rows] == 4 * [False] + [True]
    start = None
    with pytest.warns(UserWarning, match="above 2"):
        for row in front.rows:
            bond.interpolate(row["weight"])
            probs = np.exp(enumerable.log_probs(WORLD, bond.policy))
            start = probs if start is None else start
            expected = exact(probs, start, SAMPLES - 1)
            for name, value in expected.items():
                error = row[f"{name}_error"]
                z = abs(row[name] - value) / max(error, 1e-6)
                assert z < 4.5, (row["weight"], name, row[name], value, error)
                assert error < 0.1 * max(1.0, value)
    bond.interpolate(1.0)
    # What is measured is worth measuring.
    assert expected["kl"] > 0.5 > front.rows[2]["kl"] > 0.05
    assert front.rows[2]["win_rate"] < 0.45
    table = str(front).splitlines()
    assert table[-1].endswith(f"{SAMPLES} (direct)") and len(table) == 6


def test_the_mean_over_all_draws_is_nearly_that_of_the_policy():
    """Exact over 4^6 draws: the ratio is off by 0.22, jackknifed by 0.05."""
    ratios, values = np.array([0.1, 0.4, 1.0, 2.5]), np.array([0.0, 1, 2, 4])
    draws = np.array(list(itertools.product(range(4), repeat=6)))
    r, x = ratios[draws], values[draws]
    plain = ((r * x).sum(axis=1) / r.sum(axis=1)).mean()
    truth = (ratios * values).mean()
    assert abs(plain - truth) > 0.2
    assert abs(_weighted_means(r, x).mean() - truth) < 0.06
    # One sample has all the weight.
    lone = _weighted_means(np.array([[1.0, 1e-30]]), np.array([[2.0, 5.0]]))
    np.testing.assert_allclose(lone, [2.0], atol=1e-6)


class Stop(Exception):
    """Raised on purpose."""


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_the_policy_is_as_before_also_after_an_exception(weight):
    calls = []

    def reward(batch):
        calls.append(1)
        if len(calls) > 2:
            raise Stop
        return np.arange(len(batch["token_ids"])) % 3

    bond = make_bond()
    trained = values_of(bond.variables)
    bond.interpolate(weight)
    before = values_of(bond.variables)
    bond.score_samples = lambda samples: reward({"token_ids": samples})
    with pytest.raises(Stop):
        weight_front(bond, WORLD.prompts(4), [2.0], 4, None, 100.0)
    assert len(calls) == 3
    for a, b in zip(values_of(bond.variables), before):
        np.testing.assert_array_equal(a, b)
    assert bond.interpolate(1.0) == weight
    for a, b in zip(values_of(bond.variables), trained):
        np.testing.assert_array_equal(a, b)


@pytest.mark.one_backend
def test_prompts_without_a_score_do_not_count(bond):
    """They change nothing but the number of prompts."""
    whole = weight_front(bond, WORLD.prompts(5), [0.5], 4)
    score, calls = bond.score_samples, []

    def forgetful(samples):
        rewards = np.array(score(samples), "float64")
        calls.append(1)
        rewards[len(calls)] = math.nan
        return rewards

    bond.score_samples = forgetful
    try:
        with pytest.raises(ValueError, match="At least 2 of the `prompts`"):
            weight_front(bond, WORLD.prompts(2), [0.5], 4)
        calls.clear()
        calls += [1] * 13
        some = weight_front(bond, WORLD.prompts(5), [0.5], 4)
    finally:
        del bond.score_samples
    assert some.rows[0]["reward"] != whole.rows[0]["reward"]
    assert all(np.isfinite(list(some.rows[0].values())))


def row(weight, **numbers):
    errors = {f"{name}_error": 0.01 for name in numbers}
    return {
        "weight": weight,
        **numbers,
        **errors,
        "effective_samples": 40.0,
        "is_direct": False,
    }


FRONT = WeightFront(
    [
        row(0.0, reward=0.5, win_rate=0.5, kl=0.0, effective_n=1.0),
        row(1.0, reward=0.7, win_rate=0.6, kl=0.2, effective_n=2.0),
        row(2.0, reward=0.8, win_rate=0.8, kl=0.8, effective_n=5.0),
        row(3.0, reward=0.6, win_rate=0.7, kl=2.0, effective_n=math.inf),
    ],
    [{"n": 1, "reward": 0.5, "kl": 0.0}, {"n": 2, "reward": 0.7, "kl": 0.1}],
)


def test_weights_are_chosen_between_those_measured():
    assert FRONT.weight(effective_n=4.0) == pytest.approx(5 / 3)
    assert FRONT.weight(kl=0.2) == 1.0
    assert FRONT.weight(win_rate=0.7) == pytest.approx(1.5)
    # The smaller of two weights with this reward.
    assert FRONT.weight(reward=0.65) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="5.0.* weights from 0 to 2"):
        FRONT.weight(effective_n=5.01)
    with pytest.raises(ValueError, match="kl=2.1, and 0.000 to 2.000 for"):
        FRONT.weight(kl=2.1)
    for wrong in ({}, {"kl": 0.1, "reward": 0.6}, {"kl": "0.6"}):
        with pytest.raises(ValueError, match="needs one number"):
            FRONT.weight(**wrong)


def test_the_picture_shows_front_and_best_of_n(tmp_path):
    figure = plot_weight_front(FRONT)
    left, right = figure.axes
    labels = [text.get_text() for text in left.texts]
    assert labels == ["N = 1", "N = 2", "0", "1", "2", "3"]
    line = right.get_lines()[0]
    np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), [1, 2, 5, math.nan])
    figure.savefig(tmp_path / "front.png")


def test_mistakes_are_named(bond):
    prompts = WORLD.prompts(2)
    with pytest.raises(TypeError, match="`trainer` must be .*Bond"):
        weight_front(bond.policy, prompts)
    with pytest.raises(TypeError, match="`weights` must be a list"):
        weight_front(bond, prompts, 1.0)
    for weights in ([], [4.1], ["1"]):
        with pytest.raises(ValueError, match="`weights` must be numbers"):
            weight_front(bond, prompts, weights)
    with pytest.raises(ValueError, match="`num_samples` must be an integer"):
        weight_front(bond, prompts, num_samples=2)
    with pytest.raises(ValueError, match="`min_effective_samples` must be"):
        weight_front(bond, prompts, min_effective_samples=-1)
    with pytest.raises(ValueError, match="`weight_front` compares with"):
        weight_front(make_bond(reference=False), prompts)
