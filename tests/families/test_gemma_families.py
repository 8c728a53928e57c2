"""Gemma's families train on text on every backend, encoders left alone."""

import numpy as np
import pytest

from keras_bond.rollouts import network
from tests.families import steps
from tests.networks import STEP_ON_ALL_BACKENDS
from tests.networks import make_network
from tests.numeric import values_of


@pytest.mark.parametrize("family", STEP_ON_ALL_BACKENDS)
def test_text_trains_and_encoders_do_not(family):
    """Both passes agree to 1e-4 nats per token; no encoder is copied."""
    policy = make_network(family)
    layers = network.encoders(policy.backbone)
    frozen = {id(v): v for layer in layers for v in layer.variables}
    assert bool(frozen) == ("vision" in family)
    bond = steps.trainer(policy)
    trained = policy.trainable_variables
    assert not frozen.keys() & {id(v) for v in trained}
    assert len(bond.anchor.values) == len(trained)
    before = values_of(frozen.values()), values_of(trained)
    assert steps.step(bond)[steps.DIFFERENCE] < 1e-4
    for old, new in zip(before[0], values_of(frozen.values())):
        np.testing.assert_array_equal(new, old)
    pairs = zip(before[1], values_of(trained))
    assert np.mean([not np.array_equal(a, b) for a, b in pairs]) >= 0.75


def test_kerashub_generates_after_training():
    """Pins: an encoder that stays replaced by what text makes of it."""
    policy = make_network("Gemma 3, vision")
    steps.step(steps.trainer(policy))
    drawn, expected = steps.greedy(policy)
    np.testing.assert_array_equal(drawn, expected)
    images = np.ones((1, 1, 16, 16, 3), "float32")
    assert policy.backbone.vision_encoder(images).shape == (1, 4, 16)
