"""Which estimators go with which numbers, and what is said to the others."""

import pytest

import keras_bond
from keras_bond.training import estimators
from tests.tiny import length_reward
from tests.tiny import make_policy


@pytest.fixture(scope="module")
def policy():
    return make_policy()


def make(policy, **choices):
    return keras_bond.Bond(
        policy,
        length_reward,
        max_prompt_length=6,
        max_completion_length=5,
        seed=0,
        **choices,
    )


@pytest.mark.parametrize("n, name", [(2, "pooled"), (4, "control_variate")])
def test_auto_takes_the_best_that_fits(policy, n, name):
    assert make(policy, best_of_n=n).estimator.name == name


@pytest.mark.parametrize("name", estimators.BY_NAME)
def test_each_name_is_kept_by_the_config(policy, name):
    bond = make(policy, estimator=name)
    assert bond.estimator.name == name
    assert bond.get_config()["estimator"] == name


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"best_of_n": 1}, "`best_of_n` must be an integer of at least 2"),
        ({"best_of_n": 2.5}, "`best_of_n` must be an integer"),
        ({"num_policy_samples": 0}, "`num_policy_samples` must be"),
        ({"num_anchor_samples": 0}, "`num_anchor_samples` must be"),
        ({"num_anchor_samples": 1}, "`best_of_n` must not exceed `num_anchor"),
        ({"estimator": "best"}, "`estimator` must be one of"),
        ({"best_of_n": 8}, "`best_of_n` must not exceed `num_anchor"),
        (
            {"best_of_n": 8, "estimator": "paper"},
            "`best_of_n` must not exceed `num_anchor_samples`",
        ),
        ({"best_of_n": 3, "estimator": "pooled"}, "holds for `best_of_n=2`"),
        ({"best_of_n": 3, "estimator": "jbond"}, "Received: best_of_n=3"),
    ],
)
def test_what_does_not_go_together_is_named(policy, changes, text):
    with pytest.raises(ValueError, match=text):
        make(policy, **changes)


@pytest.mark.parametrize(
    "choices, expected",
    [
        ({"estimator": "pooled", "num_policy_samples": 1}, False),
        ({"estimator": "control_variate"}, False),
        ({"estimator": "control_variate", "num_policy_samples": 1}, True),
        ({"estimator": "paper"}, True),
        ({"estimator": "paper", "jeffreys_beta": 0}, False),
    ],
)
def test_some_baselines_need_other_prompts(policy, choices, expected):
    assert make(policy, **choices).needs_other_prompts() == expected
