"""Win rates against loops, and the coverage of their intervals."""

import numpy as np
import pytest
import scipy.stats
from keras import ops

from keras_bond import evaluation


def tied_rewards(seed=0):
    """Two policies of unequal numbers of samples, with many ties."""
    generator = np.random.default_rng(seed)
    mine = generator.integers(1, 6, size=(12, 3))
    return mine, generator.integers(0, 5, size=(12, 4))


def test_win_rate_is_that_of_all_pairs_of_the_same_prompt():
    """Pins: `<` for `>`, ties as wins, or samples of different prompts."""
    mine, theirs = tied_rewards()
    outcomes = [
        0.5 if a == b else float(a > b)
        for row, other_row in zip(mine, theirs)
        for a in row
        for b in other_row
    ]
    result = evaluation.win_rate(mine, theirs)
    assert result == pytest.approx(np.mean(outcomes))
    assert evaluation.win_rate(theirs, mine) == pytest.approx(1 - result)


def test_tensors_and_lists_serve_as_well_as_arrays():
    """Pins: a tensor of the backend, or float64, that ties no more."""
    mine = [[0.1, 0.2]]
    theirs = ops.convert_to_tensor([[0.1, 0.3]], "float32")
    assert evaluation.win_rate(mine, theirs) == pytest.approx(1.5 / 4)
    assert evaluation.win_rate(theirs, np.array(mine)) == pytest.approx(2.5 / 4)
    half = ops.convert_to_tensor([[1.0, 2.0]], "bfloat16")
    assert evaluation.win_rate(half, [[1.0]]) == pytest.approx(1.5 / 2)


@pytest.mark.parametrize("transform", [lambda x: x**3, np.exp])
def test_win_rate_knows_ranks_only(transform):
    mine, theirs = tied_rewards()
    plain = evaluation.paired_bootstrap(mine, theirs)
    bent = evaluation.paired_bootstrap(
        transform(mine * 1.0), transform(theirs * 1.0)
    )
    assert bent.win_rate == plain.win_rate
    assert bent.reward_difference != plain.reward_difference


def test_estimates_are_win_rate_and_difference_of_means():
    """Pins: the two policies swapped in one of the two numbers."""
    mine, theirs = tied_rewards()
    result = evaluation.paired_bootstrap(mine, theirs)
    assert result.win_rate.value == pytest.approx(
        evaluation.win_rate(mine, theirs)
    )
    assert result.reward_difference.value == pytest.approx(
        mine.mean() - theirs.mean()
    )
    swapped = evaluation.paired_bootstrap(theirs, mine)
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
    "mine, theirs, message",
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
        ([[1e300]], [[1.0]], r"`rewards` must be finite.*\[0\]=\[inf\]"),
    ],
)
def test_bad_rewards_are_refused_by_name(mine, theirs, message):
    """Pins: a silent broadcast, and NaN, which loses every comparison."""
    for function in (evaluation.win_rate, evaluation.paired_bootstrap):
        with pytest.raises(ValueError, match=message):
            function(mine, theirs)
