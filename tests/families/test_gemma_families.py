"""Gemma's families train on text on every backend, encoders left alone."""

import numpy as np
import pytest

from keras_bond.rollouts import network
from tests.families import steps
from tests.networks import GEMMAS
from tests.networks import make_network
from tests.numeric import values_of

SEE_OR_HEAR = [name for name in GEMMAS if "vision" in name]


@pytest.mark.parametrize("family", sorted(set(GEMMAS) - set(SEE_OR_HEAR)))
def test_text_trains(family):
    """One step; drawing and learning agree to 1e-4 nats a token."""
    policy = make_network(family)
    bond = steps.trainer(policy)
    before = values_of(policy.trainable_variables)
    assert steps.step(bond)[steps.DIFFERENCE] < 1e-4
    after = values_of(policy.trainable_variables)
    moved = [not np.array_equal(a, b) for a, b in zip(before, after)]
    assert np.mean(moved) >= 0.75


@pytest.mark.parametrize("family", SEE_OR_HEAR)
def test_encoders_are_neither_trained_nor_copied(family):
    """And `policy.generate` works afterwards, as before."""
    policy = make_network(family)
    encoders = network.encoders(policy.backbone)
    frozen = [v for layer in encoders for v in layer.variables]
    bond = steps.trainer(policy)
    before = values_of(frozen)
    assert steps.step(bond)[steps.DIFFERENCE] < 1e-4
    for old, new in zip(before, values_of(frozen)):
        np.testing.assert_array_equal(new, old)
    trained = {id(v) for v in policy.trainable_variables}
    assert frozen and not trained & {id(v) for v in frozen}
    assert len(bond.anchor.values) == len(trained)
    ours, theirs = steps.greedy(policy)
    np.testing.assert_array_equal(ours, theirs)
