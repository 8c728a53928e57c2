"""Gradients of the three losses against exact ones, by enumeration.

A policy of four completions is a softmax; the expectation over its samples is
a weighted sum, so that a loss must give the exact gradient and not just an
estimate. The truth is a finite difference of the divergence in float64.
"""

import itertools

import numpy as np
import pytest
from keras import ops

from keras_bond import formulas
from keras_bond.formulas import jbond
from tests.numeric import gradient

LOGITS = np.array([0.3, -0.6, 0.9, 0.1])
ANCHOR = np.array([0.4, 0.1, 0.2, 0.3])
REWARDS = np.array([2.0, 3.0, 0.0, 1.0])
PAIRS = np.array(list(itertools.product(range(4), repeat=2)))


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def kl(p, q):
    return float(np.sum(p * np.log(p / q)))


def finite_difference(function, point, step=1e-5):
    steps = step * np.eye(len(point))
    return np.array(
        [
            (function(point + s) - function(point - s)) / (2 * step)
            for s in steps
        ]
    )


def log_policy(logits):
    return ops.log_softmax(logits)


def weighted_sum(weights, losses):
    return ops.sum(ops.convert_to_tensor(weights, "float32") * losses)


def best_of_two_probs():
    """Theorem 1 for N = 2, on rewards that order the completions strictly."""
    p_le = np.array([ANCHOR[REWARDS <= r].sum() for r in REWARDS])
    p_lt = np.array([ANCHOR[REWARDS < r].sum() for r in REWARDS])
    return ANCHOR * p_le * (1 + p_lt / p_le)


def backward_target():
    """The optimum of the backward part: `∝ π_anchor · exp(r_J)`."""
    probs = ANCHOR * np.exp(mean_jbond_reward())
    return probs / probs.sum()


def mean_jbond_reward():
    p_le = np.array([ANCHOR[REWARDS <= r].sum() for r in REWARDS])
    return -np.log(16) * (1 - p_le) ** 2


def test_forward_loss_on_best_of_two_descends_the_forward_kl():
    """Pins: a dropped minus, the worse anchor sample imitated.

    Sums over all pairs of anchor samples, each imitated by `best_sample`.
    """
    picks = jbond.best_sample(ops.array(REWARDS[PAIRS]))
    best = PAIRS[np.arange(16), ops.convert_to_numpy(picks)].astype("int32")
    pair_probs = ANCHOR[PAIRS].prod(axis=1)

    def loss(logits):
        log_probs = ops.take(log_policy(logits), best)
        losses = formulas.weighted_likelihood_loss(
            log_probs[:, None], ops.ones((16, 1))
        )
        return weighted_sum(pair_probs, losses)

    truth = finite_difference(
        lambda logits: kl(best_of_two_probs(), softmax(logits)), LOGITS
    )
    np.testing.assert_allclose(gradient(loss, LOGITS), truth, atol=1e-5)


@pytest.mark.parametrize("baseline", [0.0, -3.0, 10.0])
def test_policy_gradient_descends_the_backward_kl(baseline):
    """Pins: a dropped minus, an advantage whose gradient is not stopped.

    No constant baseline may change the expected gradient.
    """
    rewards_j = ops.array(mean_jbond_reward().astype("float32"))
    log_anchor = ops.array(np.log(ANCHOR).astype("float32"))

    def loss(logits):
        log_probs = log_policy(logits)
        returns = rewards_j - (log_probs - log_anchor)
        losses = formulas.weighted_likelihood_loss(
            log_probs[:, None], returns[:, None] - baseline
        )
        return weighted_sum(softmax(LOGITS), losses)

    truth = finite_difference(
        lambda logits: kl(softmax(logits), backward_target()), LOGITS
    )
    np.testing.assert_allclose(gradient(loss, LOGITS), truth, atol=1e-5)


def test_score_function_kl_descends_the_kl_to_the_anchor():
    """Pins: the sign that algorithm 2 prints, which climbs; a missing stop."""
    log_anchor = ops.array(np.log(ANCHOR).astype("float32"))

    def loss(logits):
        log_probs = log_policy(logits)[:, None]
        losses = formulas.score_function_kl_loss(
            log_probs, log_probs - log_anchor[:, None]
        )
        return weighted_sum(softmax(LOGITS), losses)

    truth = finite_difference(
        lambda logits: kl(softmax(logits), ANCHOR), LOGITS
    )
    result = gradient(loss, LOGITS)
    np.testing.assert_allclose(result, truth, atol=1e-5)
    lower = kl(softmax(LOGITS - 0.1 * result), ANCHOR)
    assert lower < kl(softmax(LOGITS), ANCHOR)


def test_returns_have_no_gradient():
    """Pins: a forgotten stop_gradient in the returns of line 3."""
    log_anchor = ops.array(np.log(ANCHOR).astype("float32"))

    def total(logits):
        returns = formulas.backward_returns(
            ops.zeros(4), log_policy(logits) - log_anchor
        )
        return weighted_sum([1.0, 2.0, 3.0, 4.0], returns)

    np.testing.assert_array_equal(gradient(total, LOGITS), np.zeros(4))
