"""Who is penalized, who is imitated, and what the penalty is on average."""

import itertools
import math

import numpy as np
import pytest
from keras import ops

from keras_bond import formulas
from keras_bond.formulas import jbond


def penalized(rewards, anchor_rewards, *tie_breakers):
    """Of one policy sample a prompt."""
    if tie_breakers:
        tie_breakers = [(tie_breakers[0][:, None], tie_breakers[1])]
    result = formulas.is_penalized(
        np.array(rewards, "float32")[:, None],
        np.array(anchor_rewards, "float32"),
        *tie_breakers,
    )
    return ops.convert_to_numpy(result)[:, 0]


def best(rewards, *tie_breakers):
    result = jbond.best_sample(np.array(rewards, "float32"), *tie_breakers)
    return ops.convert_to_numpy(result)


def all_rewards(num_samples, values=(0.0, 1.0, 2.0)):
    return np.array(list(itertools.product(values, repeat=num_samples)))


def tie_breakers(shape, seed=0):
    return np.random.default_rng(seed).random(shape).astype("float32")


@pytest.mark.parametrize("num_anchor_samples", [1, 2, 3])
def test_strict_rule_penalizes_what_is_below_every_anchor_sample(
    num_anchor_samples,
):
    """Pins: `<=` for `<`, max for min, or any for all in eq. 17."""
    rewards = all_rewards(1 + num_anchor_samples)
    result = penalized(rewards[:, 0], rewards[:, 1:])
    for (policy, *anchors), answer in zip(rewards, result):
        assert answer == (policy < min(anchors))


@pytest.mark.parametrize("num_anchor_samples", [1, 2, 3])
def test_random_rule_orders_equal_rewards_by_their_tie_breakers(
    num_anchor_samples,
):
    """Pins: the tie-breakers of policy and anchor swapped, or misused."""
    rewards = np.tile(all_rewards(1 + num_anchor_samples), (20, 1))
    ties = tie_breakers(rewards.shape)
    result = penalized(rewards[:, 0], rewards[:, 1:], ties[:, 0], ties[:, 1:])
    for row, answer in enumerate(result):
        policy, *anchors = zip(rewards[row], ties[row])
        assert answer == (policy < min(anchors))


@pytest.mark.parametrize("num_samples", [1, 2, 4])
def test_best_sample_is_the_highest_and_tie_breakers_decide(num_samples):
    """Pins: the worst sample imitated, or a tie-breaker that beats a reward."""
    rewards = np.tile(all_rewards(num_samples) - 1.0, (10, 1))
    ties = tie_breakers(rewards.shape)
    for row, answer in enumerate(best(rewards, ties)):
        pairs = list(zip(rewards[row], ties[row]))
        assert pairs[answer] == max(pairs)


def test_best_sample_without_tie_breakers_is_the_first_of_the_tied():
    """Pins: the last of the tied taken, on some backends only."""
    rewards = all_rewards(3)
    for row, answer in zip(rewards, best(rewards)):
        assert answer == row.tolist().index(max(row))


def test_best_sample_accepts_a_lot_of_zero():
    """Pins: losers that share the tie-breaker 0 with a winner who drew 0."""
    ties = np.zeros((1, 3), "float32")
    assert best([[1.0, 2.0, 0.0]], ties).tolist() == [1]


def test_three_way_ties_penalize_one_third_and_imitate_each_half():
    """Pins: a biased order of ties, such as `>=` between equal tie-breakers.

    False alarm: 1 in 10,000 over the choice of seed (4 standard deviations
    on two counts).
    """
    count = 100_000
    ties = tie_breakers((count, 3), seed=5)
    tied = np.zeros((count, 3))
    share = penalized(tied[:, 0], tied[:, 1:], ties[:, 0], ties[:, 1:]).mean()
    assert abs(share - 1 / 3) < 4 * math.sqrt(2 / 9 / count)
    share = best(tied[:, 1:], ties[:, 1:]).mean()
    assert abs(share - 1 / 2) < 4 * math.sqrt(1 / 4 / count)


def test_without_tie_breakers_three_way_ties_are_not_penalized():
    """Pins: the strict rule of eq. 17 read as `<=`."""
    assert not penalized([1.0], [[1.0, 1.0]]).any()
    assert not penalized([1.0], [[1.0, 2.0]]).any()
    assert penalized([1.0], [[1.5, 2.0]]).all()


def test_the_penalty_is_log_16():
    """Pins: a reward for the penalized, or another constant."""
    reward = formulas.jbond_reward(np.array([True, False]))
    np.testing.assert_allclose(
        ops.convert_to_numpy(reward), [-math.log(16), 0.0], rtol=1e-6
    )


def test_expected_reward_is_minus_log_16_times_one_minus_p_le_squared():
    """Pins: min taken for max over the anchor pair, policy for anchor.

    Sums over all pairs of anchor samples, for every reward of the policy's,
    ties included; equals log p_le at the median.
    """
    anchor_probs = np.array([0.1, 0.2, 0.2, 0.5])
    levels = np.arange(4.0)
    pairs = np.array(list(itertools.product(range(4), repeat=2)))
    pair_probs = anchor_probs[pairs].prod(axis=1)
    for level in levels:
        hit = penalized([level] * len(pairs), levels[pairs])
        reward = ops.convert_to_numpy(formulas.jbond_reward(hit))
        p_le = anchor_probs[levels <= level].sum()
        expected = -math.log(16) * (1 - p_le) ** 2
        assert pair_probs @ reward == pytest.approx(expected, abs=1e-6)
        if p_le == 0.5:
            assert expected == pytest.approx(math.log(p_le))


def test_returns_subtract_what_was_gained_over_the_anchor():
    """Pins: a dropped minus, or policy and anchor swapped, in line 3."""
    result = formulas.backward_returns(
        ops.array([-2.0, 0.0]),
        ops.array([-10.0, -5.0]) - ops.array([-13.0, -4.0]),
    )
    np.testing.assert_allclose(ops.convert_to_numpy(result), [-5.0, 1.0])
