"""Divergences, and the exact gradient of the KL of sequences."""

import itertools

import numpy as np
import pytest
from keras import ops

from keras_bond import formulas
from tests.formulas import laws
from tests.numeric import gradient


def kl(p, q):
    return float(np.sum(p * np.log(p / q)))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_jeffreys_weighs_forward_and_backward(beta):
    """Eq. 11: β on `KL(π ‖ target)`, the backward one. Pins: swapped parts."""
    p, q = laws.POLICY, laws.ANCHOR
    result = formulas.jeffreys_divergence(
        p.astype("float32"), q.astype("float32"), beta
    )
    expected = (1 - beta) * kl(q, p) + beta * kl(p, q)
    assert float(result) == pytest.approx(expected, rel=1e-4)


def test_outcomes_of_probability_zero_count_nothing():
    result = formulas.kl_divergence(
        ops.array([0.0, 1.0]), ops.array([0.5, 0.5])
    )
    assert float(result) == pytest.approx(np.log(2), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_token_kls_are_those_of_the_tempered_laws(temperature):
    generator = np.random.default_rng(0)
    mine, other = generator.normal(size=(2, 3, 5)).astype("float32")
    result = formulas.token_kls(mine, other, temperature)
    expected = [
        kl(laws.softmax(a / temperature), laws.softmax(b / temperature))
        for a, b in zip(mine, other)
    ]
    np.testing.assert_allclose(
        ops.convert_to_numpy(result), expected, rtol=1e-4
    )


# A policy of two tokens: the first ends the sequence if it is 0.
FIRST = np.array([0.2, -0.3, 0.5])
SECOND = np.array([[0.0, 0.0, 0.0], [0.7, -0.2, 0.1], [-0.5, 0.4, 0.2]])
OTHER_FIRST = np.array([0.5, 0.1, -0.4])
OTHER_SECOND = np.array([[0.0, 0.0, 0.0], [-0.3, 0.6, 0.0], [0.1, 0.1, 0.9]])
SEQUENCES = [(0, 0), *itertools.product((1, 2), range(3))]


def law(first, second):
    p = laws.softmax(first)
    return np.array(
        [
            p[0] if a == 0 else p[a] * laws.softmax(second[a])[b]
            for a, b in SEQUENCES
        ]
    )


def test_the_full_vocabulary_loss_descends_the_kl_of_sequences():
    """By enumeration of the samples; the tail term is half of the truth.

    Pins: a missing tail, a lost stop.
    """
    parameters = np.concatenate([FIRST[None], SECOND]).ravel()
    samples = np.array(SEQUENCES)
    mask = np.array([[True, a != 0] for a, _ in SEQUENCES])
    chances = law(FIRST, SECOND)
    other = np.stack(
        [np.tile(OTHER_FIRST, (7, 1)), OTHER_SECOND[samples[:, 0]]], axis=1
    ).astype("float32")

    def loss(flat):
        table = ops.reshape(flat, (4, 3))
        logits = ops.stack(
            [
                ops.broadcast_to(table[0], (7, 3)),
                ops.take(table, samples[:, 0] + 1, axis=0),
            ],
            axis=1,
        )
        losses = formulas.full_vocabulary_kl_loss(
            formulas.token_kls(logits, other),
            formulas.token_log_probs(logits, samples),
            mask,
        )
        return ops.sum(ops.array(chances.astype("float32")) * losses)

    def truth(flat):
        table = flat.reshape(4, 3)
        return kl(law(table[0], table[1:]), law(OTHER_FIRST, OTHER_SECOND))

    steps = 1e-5 * np.eye(12)
    expected = [
        (truth(parameters + s) - truth(parameters - s)) / 2e-5 for s in steps
    ]
    np.testing.assert_allclose(gradient(loss, parameters), expected, atol=1e-5)


def test_the_tail_is_what_comes_after_a_token():
    """Earlier terms would change no expectation, only add variance."""
    kls = np.array([[1.0, 2.0, 4.0, 8.0]], "float32")
    mask = np.array([[True, True, True, False]])

    def loss(log_probs):
        return ops.sum(formulas.full_vocabulary_kl_loss(kls, log_probs, mask))

    slope = gradient(loss, np.array([[-1.0, -2.0, -3.0, -4.0]]))
    np.testing.assert_allclose(slope, [[6.0, 4.0, 0.0, 0.0]])
