"""What a second `compile` in the middle of a training keeps."""

import keras
import numpy as np
import pytest

import keras_bond
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy


@pytest.mark.parametrize("accumulation", [None, 2])
def test_the_anchor_counts_the_updates_of_the_new_optimizer(accumulation):
    """Pins: a count that is left from the old optimizer.

    One update of each: the second is number 1 as well, and the anchor must not
    take it for the first. Where gradients are accumulated, half an update is
    none, though its count, 0, differs from the old one.
    """
    policy = make_policy(num_layers=1, scale=3.0)
    bond = keras_bond.JBond(
        policy,
        length_reward,
        max_prompt_length=12,
        max_completion_length=3,
        reference=True,
        seed=1,
    )
    rule = keras_bond.callbacks.AnchorEMA(0.5)
    anchors = [values_of(bond.anchor.values)]
    policies = [values_of(policy.trainable_variables)]
    for steps in (None, accumulation):
        bond.compile(
            keras.optimizers.SGD(1e-2, gradient_accumulation_steps=steps),
            **COMPILED_QUICKLY,
        )
        bond.fit(PROMPTS[:4], batch_size=4, callbacks=[rule], verbose=0)
        anchors.append(values_of(bond.anchor.values))
        policies.append(values_of(policy.trainable_variables))
    for anchor, new, old in zip(anchors[1], policies[1], anchors[0]):
        np.testing.assert_allclose(anchor, (new + old) / 2, atol=1e-6)
    for anchor, new, old in zip(anchors[2], policies[2], anchors[1]):
        moved = old if accumulation else (new + old) / 2
        np.testing.assert_allclose(anchor, moved, atol=1e-6)
    gap = max(np.abs(a - b).max() for a, b in zip(policies[2], anchors[1]))
    assert gap > 1e-3


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="compiles no stages"
)
@pytest.mark.parametrize("verbose", [0, 2])
def test_it_says_what_it_compiles(capsys, verbose):
    """Once for each stage, and nothing with `verbose=0`."""
    bond = keras_bond.JBond(
        make_policy(num_layers=1),
        length_reward,
        max_prompt_length=12,
        max_completion_length=3,
        seed=1,
    )
    bond.compile(keras.optimizers.SGD(1e-2), **COMPILED_QUICKLY)
    bond.fit(PROMPTS[:2], batch_size=2, epochs=2, verbose=verbose)
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if line.startswith("Compiling")]
    expected = [f"Compiling `{s}`, once for each shape." for s in bond.stages]
    assert said == (expected if verbose else [])
