"""The same seed draws the same completions, whatever was rebuilt since.

The numbers were written by the version of 2026-11-26. Every argument that
matters is written out, so that new defaults change nothing here. A run of its
own writes them anew: `python -m tests.training.test_golden`.
"""

import json
import pathlib

import keras
import numpy as np
import pytest

import keras_bond
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy
from tests.training.given import WALL_TIMES

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "completions.json"
COMMON = dict(
    max_prompt_length=12,
    max_completion_length=6,
    jeffreys_beta=0.5,
    kl_weight=0.3,
    reference=True,
    temperature=0.9,
    prompt_buckets=(6, 12),
    seed=11,
)
RECIPES = {
    "jbond": dict(),
    "pooled": dict(
        best_of_n=2,
        num_policy_samples=2,
        num_anchor_samples=3,
        estimator="pooled",
    ),
    "control_variate": dict(
        best_of_n=3,
        num_policy_samples=2,
        num_anchor_samples=4,
        estimator="control_variate",
    ),
}


def train(name, num_layers=2, compile_arguments=COMPILED_QUICKLY, **changes):
    """Trains for two epochs; `changes` are those of the trainer's arguments.

    Returns:
        `(bond, drawn, found)`: the trainer, the list that its reward adds
        completions to, and a dict of what was drawn, logged and learned.
    """
    drawn = []

    def reward(prompts, completions):
        drawn.append(list(completions))
        return length_reward(prompts, completions)

    trainer = keras_bond.JBond if name == "jbond" else keras_bond.Bond
    policy = make_policy(num_layers=num_layers, scale=3.0)
    bond = trainer(policy, reward, **{**COMMON, **RECIPES[name], **changes})
    bond.compile(
        keras.optimizers.SGD(0.05),
        rollout_batch_size=4,
        gradient_accumulation_steps=2,
        rematerialize=False,
        max_skipped_steps=10,
        **compile_arguments,
    )
    history = bond.fit(
        PROMPTS,
        batch_size=4,
        epochs=2,
        shuffle=True,
        verbose=0,
        callbacks=[keras_bond.callbacks.AnchorEMA(update_rate=0.1)],
    ).history
    found = {
        "trained_on": drawn[:4],
        "history": {
            k: [float(x) for x in v]
            for k, v in history.items()
            if k not in WALL_TIMES
        },
        "weights": [
            float(np.sum(np.square(v))) for v in values_of(policy.variables)
        ],
        "anchor": [
            float(np.sum(np.square(v))) for v in values_of(bond.anchor.values)
        ],
    }
    return bond, drawn, found


def run(name):
    """Trains, evaluates and generates; returns all that came of it."""
    bond, drawn, found = train(name)
    evaluated = bond.evaluate(
        PROMPTS, batch_size=4, verbose=0, return_dict=True
    )
    return {
        **found,
        "evaluated_on": drawn[4:],
        "generated": {
            weights: bond.generate(
                PROMPTS[:3], num_samples=2, weights=weights, seed=5
            )
            for weights in ("policy", "anchor", "reference")
        },
        "evaluated": {k: float(v) for k, v in evaluated.items()},
    }


@pytest.mark.parametrize(
    "name",
    ["jbond", pytest.param("pooled", marks=pytest.mark.one_backend)],
)
def test_runs_are_those_of_before(name):
    found = run(name)
    assert_golden(name, found)
    assert len(found) == 7


@pytest.mark.one_backend
def test_a_training_is_that_of_before():
    """Evaluation and generation know no estimator; they run with `pooled`."""
    *_, found = train("control_variate")
    assert_golden("control_variate", found)
    assert len(found) == 4


def assert_golden(name, found):
    assert_same(found, json.loads(GOLDEN.read_text())[name])


def assert_same(found, golden):
    """Compares what was found of it."""
    for part in ("trained_on", "evaluated_on", "generated"):
        if part in found:
            assert found[part] == golden[part], part
    for part in ("history", "evaluated"):
        for key, expected in golden[part].items() if part in found else ():
            np.testing.assert_allclose(
                found[part][key], expected, rtol=2e-4, atol=1e-4, err_msg=key
            )
    for part in ("weights", "anchor"):
        np.testing.assert_allclose(found[part], golden[part], rtol=1e-5)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({n: run(n) for n in RECIPES}, indent=1))
