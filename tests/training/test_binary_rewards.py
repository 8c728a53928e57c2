"""Rewards of two values, one answer in twenty right: ties are the rule.

The share of right answers is an exact sum over all 21 completions. Everything
is drawn from the seed, the same on every backend, so that nothing is left to
chance.
"""

import keras
import numpy as np
import pytest

import keras_bond
from examples import enumerable
from tests.training.test_exact_distribution import WORLD
from tests.training.test_exact_distribution import distribution_of
from tests.training.test_exact_distribution import make_policy

STEPS = 80
SEQUENCES_PER_STEP = 96


def right_answers(start, share=0.06):
    """Marks random completions until they hold almost `share` of the mass."""
    right = np.zeros_like(start)
    for i, probs in enumerate(start):
        for j in np.random.default_rng(i).permutation(len(probs)):
            if right[i] @ probs + probs[j] <= share:
                right[i, j] = 1.0
    return right


@pytest.mark.parametrize(
    ("kind", "sequences", "least", "most"),
    [
        (keras_bond.Bond, 8, 0.6, 1.0),
        pytest.param(
            keras_bond.JBond, 3, 0.3, 0.6, marks=pytest.mark.one_backend
        ),
    ],
)
def test_one_in_twenty_is_enough_to_learn_from(kind, sequences, least, most):
    """At equal generated sequences. Reached here, from 0.05: 0.73 and 0.44."""
    policy = make_policy()
    start = distribution_of(policy)
    right = right_answers(start)
    assert 0.04 < (start * right).sum(axis=1).mean() < 0.06
    bond = kind(
        policy,
        enumerable.Table(WORLD, right),
        **WORLD.lengths,
        seed=0,
    )
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, 1000, warmup_target=3e-3, warmup_steps=10
    )
    bond.compile(keras.optimizers.Adam(rate))
    batch_size = SEQUENCES_PER_STEP // sequences
    bond.fit(
        WORLD.prompts(batch_size // WORLD.num_prompts * STEPS),
        batch_size=batch_size,
        verbose=0,
        callbacks=[keras_bond.callbacks.AnchorEMA(0.05)],
    )
    assert least < (distribution_of(policy) * right).sum(axis=1).mean() < most
