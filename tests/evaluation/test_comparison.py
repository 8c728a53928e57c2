"""Win rates against loops, and the coverage of their intervals."""

import numpy as np
import pytest
import scipy.stats
from keras import ops

from keras_bond import evaluation


def tied_rewards(seed=0):
    """Two policies of unequal numbers of samples, with many ties."""
    generator = np.random.default_rng(seed)
    policy = generator.integers(1, 6, size=(12, 3))
    return policy, generator.integers(0, 5, size=(12, 4))


def test_win_rate_is_that_of_all_pairs_of_the_same_prompt():
    """Pins: `<` for `>`, ties as wins, or samples of different prompts."""
    policy, others = tied_rewards()
    outcomes = [
        0.5 if a == b else float(a > b)
        for row, other_row in zip(policy, others)
        for a in row
        for b in other_row
    ]
    result = evaluation.win_rate(policy, others)
    assert result == pytest.approx(np.mean(outcomes))
    assert evaluation.win_rate(others, policy) == pytest.approx(1 - result)


def test_tensors_and_lists_serve_as_well_as_arrays():
    """Pins: equal rewards that tie no more in float32 and float64."""
    policy = [[0.1, 0.2]]
    others = ops.convert_to_tensor([[0.1, 0.3]], "float32")
    assert evaluation.win_rate(policy, others) == pytest.approx(1.5 / 4)
    assert evaluation.win_rate(others, np.array(policy)) == pytest.approx(
        2.5 / 4
    )
    half = ops.convert_to_tensor([[1.0, 2.0]], "bfloat16")
    assert evaluation.win_rate(half, [[1.0]]) == pytest.approx(1.5 / 2)


@pytest.mark.parametrize("offset, step", [(1e6, 1e-3), (0.5, 1e-12)])
def test_float64_decides_what_ties(offset, step):
    """Pins: rewards that float32 cannot tell apart, taken for ties."""
    policy, others = tied_rewards()
    expected = evaluation.paired_bootstrap(policy, others)
    result = evaluation.paired_bootstrap(
        offset + step * policy, offset + step * others
    )
    assert result.win_rate == expected.win_rate
    assert result.reward_difference.value == pytest.approx(
        step * expected.reward_difference.value, rel=1e-3
    )


@pytest.mark.parametrize("transform", [lambda x: x**3, np.exp])
def test_win_rate_knows_ranks_only(transform):
    policy, others = tied_rewards()
    plain = evaluation.paired_bootstrap(policy, others)
    bent = evaluation.paired_bootstrap(
        transform(policy * 1.0), transform(others * 1.0)
    )
    assert bent.win_rate == plain.win_rate
    assert bent.reward_difference != plain.reward_difference


def test_estimates_are_win_rate_and_difference_of_means():
    """Pins: the two policies swapped in one of the two numbers."""
    policy, others = tied_rewards()
    result = evaluation.paired_bootstrap(policy, others)
    assert result.win_rate.value == pytest.approx(
        evaluation.win_rate(policy, others)
    )
    assert result.reward_difference.value == pytest.approx(
        policy.mean() - others.mean()
    )
    swapped = evaluation.paired_bootstrap(others, policy)
    assert swapped.win_rate.value == pytest.approx(1 - result.win_rate.value)


def test_intervals_cover_as_often_as_they_say():
    """Pins: prompts unpaired (always covers), or samples taken for prompts.

    Prompts differ far more than policies, and in how far the policies differ.
    Of 200 intervals of 95 %, 177 to 199 cover with probability 0.9999.
    """
    repetitions, prompts = 200, 60
    generator = np.random.default_rng(0)
    shifts = np.array([-0.5, 0.5, 1.5])
    truth_win_rate = scipy.stats.norm.cdf(shifts / np.sqrt(2)).mean()
    covered = np.zeros(2)
    for repetition in range(repetitions):
        prompt = generator.normal(size=(prompts, 1)) * 5
        shift = generator.choice(shifts, size=(prompts, 1))
        noise = generator.normal(size=(2, prompts, 4))
        result = evaluation.paired_bootstrap(
            prompt + shift + noise[0],
            prompt + noise[1],
            num_resamples=200,
            seed=repetition,
        )
        covered += [
            result.win_rate.low <= truth_win_rate <= result.win_rate.high,
            result.reward_difference.low
            <= shifts.mean()
            <= result.reward_difference.high,
        ]
    low, high = scipy.stats.binom(repetitions, 0.95).ppf([5e-5, 1 - 5e-5])
    assert (covered >= low).all() and (covered <= high).all()


@pytest.mark.parametrize(
    "policy, others, message",
    [
        (
            [[1.0], [2.0]],
            [[1.0, 2.0]],
            r"`rewards` and `other_rewards` must .*\(2, 1\).*\(1, 2\)",
        ),
        ([1.0, 2.0], [[1.0]], r"`rewards` must be of shape .*\(2,\)"),
        ([[]], [[1.0]], r"`rewards` must be of shape .*\(1, 0\)"),
        ([[1.0]], [[np.nan]], r"`other_rewards` must be finite.*\[0\]=\[nan\]"),
        ([[1.0, None]], [[1.0]], r"`rewards` must be finite.*1 such prompts"),
        ([[np.inf]], [[1.0]], r"`rewards` must be finite.*\[0\]=\[inf\]"),
        ([[1e300]], [[1.0]], r"`rewards` must be finite.*\[0\]=\[1e\+300\]"),
    ],
)
def test_bad_rewards_are_refused_by_name(policy, others, message):
    """Pins: a silent broadcast, and NaN, which loses every comparison."""
    for function in (evaluation.win_rate, evaluation.paired_bootstrap):
        with pytest.raises(ValueError, match=message):
            function(policy, others)
