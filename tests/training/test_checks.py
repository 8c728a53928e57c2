"""Bad input is refused by name when the trainer is built or compiled."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_bond
from tests.numeric import values_of
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

pytestmark = pytest.mark.one_backend

GOOD = {"max_prompt_length": 12, "max_completion_length": 5}


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"max_completion_length": 0}, "`max_completion_length` must be a pos"),
        ({"max_prompt_length": 2.5}, "`max_prompt_length` must be a positive"),
        ({"jeffreys_beta": 1.5}, "`jeffreys_beta` must be between"),
        ({"kl_weight": -1}, "`kl_weight` must be"),
        ({"kl_weight": float("inf")}, "`kl_weight` must be"),
        ({"temperature": 0}, "`temperature` must be"),
        ({"temperature": True}, "`temperature` must be"),
        ({"reference": "yes"}, "`reference` must be one of"),
        ({"truncate": "right"}, "`truncate` must be one of"),
        ({"seed": -1}, "`seed` must be an integer"),
        ({"reward_weights": [1.0]}, "goes with a list"),
    ],
)
def test_arguments_out_of_range_are_named(policy, arguments, text):
    with pytest.raises(ValueError, match=text):
        keras_bond.JBond(policy, length_reward, **{**GOOD, **arguments})


def test_compile_comes_first(policy):
    """Pins: Keras's "no attribute 'optimizer'"."""
    reward_model = keras_bond.RewardModel(policy)
    bond = keras_bond.Bond(policy, length_reward, **GOOD)
    pairs = [{"chosen": "a", "rejected": "b"}]
    for run in (
        lambda: bond.evaluate(["fox"]),
        lambda: bond.fit(["fox"]),
        lambda: reward_model.evaluate(pairs),
        lambda: reward_model.fit(pairs),
    ):
        with pytest.raises(ValueError, match="`compile` must be called before"):
            run()


def test_what_is_no_language_model_is_refused():
    model = keras.Sequential([keras.layers.Dense(1)])
    with pytest.raises(TypeError, match="KerasHub causal language model"):
        keras_bond.JBond(model, length_reward, **GOOD)


def test_nothing_to_train_is_refused(policy):
    policy.trainable = False
    with pytest.raises(ValueError, match="something to train"):
        keras_bond.JBond(policy, length_reward, **GOOD)


def test_positions_that_the_backbone_lacks_are_refused(policy):
    policy.backbone.max_sequence_length = 16
    with pytest.raises(ValueError, match="16 positions"):
        keras_bond.JBond(policy, length_reward, **GOOD)


def test_text_needs_a_tokenizer(policy):
    policy.preprocessor = None
    with pytest.raises(ValueError, match="`stop_token_ids` must be given"):
        keras_bond.JBond(policy, length_reward, **GOOD)
    with pytest.raises(ValueError, match="the policy needs a tokenizer"):
        keras_bond.JBond(policy, length_reward, stop_token_ids=[1], **GOOD)


class Scorer(keras.layers.Layer):
    """Scores by the policy's own backbone, which it should not."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def call(self, inputs):
        return ops.mean(self.backbone(inputs), axis=(1, 2))


def test_a_reward_on_the_policys_backbone_is_refused(policy):
    with pytest.raises(ValueError, match="share trainable variables"):
        keras_bond.JBond(policy, Scorer(policy.backbone), **GOOD)
    other = make_policy(seed=1)
    keras_bond.JBond(policy, Scorer(other.backbone), **GOOD)


def test_a_keras_reward_is_not_trained_with_the_policy(policy):
    """A model kept as an attribute would be tracked, trained and saved."""
    scorer = Scorer(make_policy(seed=1).backbone)
    bond = keras_bond.JBond(policy, scorer, **GOOD)
    scored = {id(v) for v in scorer.variables}
    assert not scored & {id(v) for v in bond.variables}


def test_lora_after_building_is_refused(policy):
    bond = keras_bond.JBond(policy, length_reward, **GOOD)
    bond.compile("sgd")
    policy.backbone.enable_lora(2)
    with pytest.raises(ValueError, match="must not change once"):
        bond.fit(PROMPTS, verbose=0)


def test_adapters_are_reproducible_with_keras_seed():
    """As docs/prompts.md says: they do not depend on the trainer's seed."""
    drawn = []
    for seed in (0, 0, 1):
        policy = make_policy(num_layers=1)
        keras.utils.set_random_seed(seed)
        policy.backbone.enable_lora(2)
        drawn.append(np.concatenate(list(map(np.ravel, adapters(policy)))))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def adapters(policy):
    return values_of(policy.trainable_variables)


def test_adam_on_bfloat16_variables_is_refused():
    """It would change nothing, at any learning rate, and say nothing."""
    policy = make_policy(dtype="bfloat16")
    bond = keras_bond.JBond(policy, length_reward, **GOOD)
    with pytest.raises(ValueError, match="cannot move bfloat16 variables"):
        bond.compile(keras.optimizers.Adam(1e-5))
    policy.backbone.enable_lora(2)
    adapters = keras_bond.JBond(policy, length_reward, **GOOD)
    if {v.dtype for v in policy.trainable_variables} == {"float32"}:
        adapters.compile(keras.optimizers.Adam(1e-5))


@pytest.mark.parametrize(
    ("optimizer", "received"),
    [
        (keras.optimizers.AdamW(1e-5), "weight_decay=0.004"),
        (keras.optimizers.SGD(1e-5, weight_decay=0.1), "weight_decay=0.1"),
        (
            keras.optimizers.Muon(1e-5, weight_decay=None),
            "adam_weight_decay=0.004",
        ),
        (
            keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(1e-5)),
            "weight_decay=0.004",
        ),
    ],
)
def test_weight_decay_is_warned_about_without_adapters(
    policy, optimizer, received
):
    bond = keras_bond.JBond(policy, length_reward, **GOOD)
    with pytest.warns(UserWarning, match=f"pulls the .*Received: {received}"):
        bond.compile(optimizer)


def test_weight_decay_of_adapters_pulls_to_the_reference(policy):
    without = keras.optimizers.AdamW(1e-5, weight_decay=0.0)
    bond = keras_bond.JBond(policy, length_reward, **GOOD)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        bond.compile(without)
        policy.backbone.enable_lora(2)
        bond = keras_bond.JBond(policy, length_reward, **GOOD)
        bond.compile(keras.optimizers.AdamW(1e-5))
