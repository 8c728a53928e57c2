"""Divergences of listed distributions and of logits."""

import numpy as np
import pytest
from keras import ops

from keras_bond import formulas
from tests.formulas import distributions


def kl(p, q):
    return float(np.sum(p * np.log(p / q)))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_jeffreys_weighs_forward_and_backward(beta):
    """Eq. 11: β on `KL(π ‖ target)`, the backward one. Pins: swapped parts."""
    p, q = distributions.POLICY, distributions.ANCHOR
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
def test_token_kls_are_those_of_the_tempered_distributions(temperature):
    generator = np.random.default_rng(0)
    policy, anchor = generator.normal(size=(2, 3, 5)).astype("float32")
    result = formulas.token_kls(policy, anchor, temperature)
    expected = [
        kl(
            distributions.softmax(a / temperature),
            distributions.softmax(b / temperature),
        )
        for a, b in zip(policy, anchor)
    ]
    np.testing.assert_allclose(
        ops.convert_to_numpy(result), expected, rtol=1e-4
    )
