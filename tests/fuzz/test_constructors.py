"""Junk as arguments: refused by name, or a trainer with sane settings."""

import json
import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies

import keras_bond
from keras_bond import evaluation
from keras_bond import rewards
from tests.fuzz.outcomes import JUNK
from tests.fuzz.outcomes import examples
from tests.fuzz.outcomes import result_or_named_error
from tests.tiny import length_reward
from tests.tiny import make_policy

pytestmark = pytest.mark.one_backend

GOOD = {"max_prompt_length": 12, "max_completion_length": 5}
SHARED = {
    "max_prompt_length": strategies.integers(1, 20),
    "max_completion_length": strategies.integers(1, 9),
    "prompt_buckets": strategies.sampled_from([[4, 12], (12,)]),
    "truncate": strategies.sampled_from(["left", None]),
    "stop_token_ids": strategies.sampled_from(["auto", [1], (1, 2)]),
    "temperature": strategies.floats(0.1, 2.0),
    "seed": strategies.integers(0, 2**31 - 1),
    "reference": strategies.sampled_from(["auto", True, False]),
    "reward_weights": strategies.none(),
}
BETA = {
    "jeffreys_beta": strategies.floats(0, 1),
    "kl_weight": strategies.floats(0, 3),
}
SAMPLES = {
    "num_policy_samples": strategies.integers(1, 4),
    "num_anchor_samples": strategies.integers(0, 4),
    "best_of_n": strategies.integers(1, 8),
}
TRAINERS = {
    keras_bond.JBond: {**SHARED, **BETA},
    keras_bond.Bond: {
        **SHARED,
        **BETA,
        **SAMPLES,
        "estimator": strategies.text(max_size=9),
    },
    keras_bond.Reinforce: {
        **SHARED,
        "kl_weight": strategies.floats(0, 1),
        "num_policy_samples": strategies.integers(1, 4),
        "baseline": strategies.sampled_from(["prompt", "batch"]),
    },
    keras_bond.BoNBoN: {
        **SHARED,
        "best_of_n": strategies.integers(2, 8),
        "sft_weight": strategies.floats(0, 1),
    },
}


@strategies.composite
def trainers(draw):
    """A class, and arguments of which one or two are junk."""
    trainer = draw(strategies.sampled_from(list(TRAINERS)))
    known = TRAINERS[trainer]
    wrong = draw(
        strategies.lists(
            strategies.sampled_from(sorted(known)), max_size=2, unique=True
        )
    )
    others = draw(
        strategies.lists(
            strategies.sampled_from(sorted(known)), max_size=3, unique=True
        )
    )
    arguments = {name: draw(known[name]) for name in others}
    arguments |= {name: draw(JUNK) for name in wrong}
    return trainer, {**GOOD, **arguments}


@pytest.fixture(scope="module")
def shared_policy():
    return make_policy(num_layers=1)


@examples(120)
@given(trainers())
def test_trainers(shared_policy, chosen):
    trainer, arguments = chosen
    made, _ = result_or_named_error(
        lambda: trainer(shared_policy, length_reward, **arguments)
    )
    if made is None:
        return
    assert is_count(made.max_prompt_length, 1)
    assert is_count(made.max_completion_length, 1)
    assert is_count(made.num_policy_samples, 0)
    assert is_count(made.num_anchor_samples, 0)
    assert 0 < made.temperature < math.inf
    assert is_count(made.seed, 0) and made.seed < 2**31
    assert made.prompt_buckets[-1] == made.max_prompt_length
    config = made.get_config()
    for name in (*BETA, "kl_weight", "sft_weight"):
        assert 0 <= config.get(name, 0) < math.inf
    config["policy"] = None
    json.dumps(keras.saving.serialize_keras_object(config))


def is_count(value, minimum):
    is_integer = isinstance(value, (int, np.integer))
    return is_integer and not isinstance(value, bool) and value >= minimum


@examples(40)
@given(strategies.one_of(JUNK, strategies.lists(JUNK, max_size=3)))
def test_what_is_no_reward(shared_policy, junk):
    result_or_named_error(lambda: keras_bond.JBond(shared_policy, junk, **GOOD))


@examples(40)
@given(JUNK)
def test_what_is_no_policy(junk):
    with pytest.raises((TypeError, ValueError), match="Received"):
        keras_bond.JBond(junk, length_reward, **GOOD)
    with pytest.raises((TypeError, ValueError), match="Received"):
        keras_bond.RewardModel(junk)


SMALL = {
    keras_bond.callbacks.AnchorEMA: ["update_rate"],
    keras_bond.callbacks.AnchorRefresh: ["every"],
    keras_bond.callbacks.HeldOut: [
        "gold_reward",
        "every",
        "ns",
        "pool_size",
        "num_samples",
        "num_shown",
    ],
    keras_bond.callbacks.ProgressBar: ["names"],
    rewards.Length: ["minimum", "maximum", "unit"],
    rewards.OverlongPenalty: ["maximum", "buffer", "unit"],
    rewards.Repetition: ["n"],
    rewards.ExactAnswer: ["column"],
    rewards.RegexAnswer: ["pattern", "column"],
    rewards.Cached: ["reward"],
    rewards.Classifier: ["classify", "label"],
    rewards.RankFusion: ["rewards", "weights"],
    rewards.UnfinishedLast: ["reward"],
    rewards.ConcurrentReward: [
        "max_workers",
        "batch_size",
        "timeout",
        "retries",
        "retry_delay",
        "on_failure",
    ],
}
NEEDED = {
    keras_bond.callbacks.HeldOut: {"prompts": ["a"]},
    keras_bond.callbacks.AnchorRefresh: {"every": 1},
    rewards.OverlongPenalty: {"maximum": 2, "buffer": 1},
    rewards.RegexAnswer: {"pattern": "a"},
    rewards.Cached: {"reward": length_reward},
    rewards.Classifier: {"classify": len},
    rewards.RankFusion: {"rewards": [length_reward]},
    rewards.UnfinishedLast: {"reward": length_reward},
    rewards.ConcurrentReward: {"reward": length_reward},
}


@pytest.mark.parametrize("made", SMALL, ids=lambda made: made.__name__)
def test_callbacks_and_rewards(made):
    @examples(30)
    @given(strategies.dictionaries(strategies.sampled_from(SMALL[made]), JUNK))
    def junk(arguments):
        arguments = {**NEEDED.get(made, {}), **arguments}
        result_or_named_error(lambda: made(**arguments))

    junk()


ARRAYS = strategies.one_of(
    JUNK,
    strategies.lists(strategies.lists(strategies.floats(), max_size=4)),
    strategies.lists(
        strategies.lists(strategies.integers(0, 3), min_size=3, max_size=3),
        max_size=4,
    ),
)


@examples(80)
@given(ARRAYS, ARRAYS)
def test_evaluation(rewards, others):
    n, _ = result_or_named_error(
        lambda: evaluation.effective_n(rewards, others, num_resamples=3)
    )
    assert n is None or n.value >= 0
    rate, _ = result_or_named_error(
        lambda: evaluation.win_rate(rewards, others)
    )
    assert rate is None or 0 <= rate <= 1
    excess, _ = result_or_named_error(lambda: evaluation.excess_kl(rewards, 1))
    assert excess is None or np.all(np.asarray(excess) <= 1)
    rows, _ = result_or_named_error(
        lambda: evaluation.best_of_n_frontier(rewards, ns=(1, 2))
    )
    if rows is not None:
        slack = 1e-5 * max(1.0, abs(rows[1]["reward"]))
        assert rows[0]["reward"] <= rows[1]["reward"] + slack
