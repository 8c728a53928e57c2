"""Copies, pickles and clones: what they hold, or why they are refused."""

import copy
import pickle

import keras
import numpy as np
import pytest

import keras_bond
from keras_bond import callbacks
from keras_bond import rewards
from tests.numeric import values_of
from tests.rewards.samples import samples
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy
from tests.training.given import WALL_TIMES

WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
}
TRAINERS = {
    "jbond": keras_bond.JBond,
    "bond": keras_bond.Bond,
    "reinforce": keras_bond.Reinforce,
    "bonbon": keras_bond.BoNBoN,
}


def shout(prompts, completions):
    """Registered nowhere, so that no file holds it."""
    return [float(text.isupper()) for text in completions]


def everything(model):
    optimizer = model.optimizer.variables if model.optimizer else []
    return [*model.variables, *optimizer]


def disturb(model):
    """Weights that no initializer gives, those of the optimizer included."""
    for i, variable in enumerate(everything(model)):
        if "float" in variable.dtype:
            variable.assign(variable + 0.01 * (i + 1))
        elif variable.dtype == "int32":
            variable.assign(variable + i)


def assert_independent_copy(model, copied):
    assert type(copied) is type(model) and copied is not model
    before = values_of(everything(model))
    for a, b in zip(before, values_of(everything(copied)), strict=True):
        np.testing.assert_array_equal(a, b)
    disturb(copied)
    for a, b in zip(before, values_of(everything(model))):
        np.testing.assert_array_equal(a, b)


def make_trainer(kind, lora=False, reward=shout):
    policy = make_policy(num_layers=1)
    if lora:
        policy.backbone.enable_lora(2)
    trainer = TRAINERS[kind](
        policy, reward, max_prompt_length=12, max_completion_length=3, seed=1
    )
    trainer.compile(keras.optimizers.Adam(1e-5), **COMPILED_QUICKLY)
    return trainer


@pytest.mark.parametrize(
    "kind, lora",
    [("jbond", True), ("bond", False), ("reinforce", True), ("bonbon", False)],
)
def test_copies_of_trainers_are_whole(kind, lora):
    """Pins: a copy without its reward, or one that shares its policy."""
    trainer = make_trainer(kind, lora)
    disturb(trainer)
    trainer.progress.is_loaded = lora
    for way in WAYS.values():
        copied = way(trainer)
        assert_independent_copy(trainer, copied)
        assert copied.reward is shout
        assert copied.progress.is_loaded == lora
        # The tokenizer came along, and the adapters are still separate.
        assert copied.tokenizer.encode(PROMPTS) == (
            trainer.tokenizer.encode(PROMPTS)
        )
        copied.check_ready()
        assert len(copied.anchor.values) == len(trainer.anchor.values)


def test_a_copy_trains_and_answers_as_the_original():
    trainer = make_trainer("bond", lora=True)
    copied = copy.deepcopy(trainer)
    assert copied.generate(PROMPTS[:2]) == trainer.generate(PROMPTS[:2])
    logs = [
        one.fit(PROMPTS[:2], batch_size=2, verbose=0).history
        for one in (trainer, copied)
    ]
    for name in logs[0].keys() - WALL_TIMES:
        assert logs[0][name] == pytest.approx(logs[1][name], nan_ok=True)


@pytest.mark.parametrize("way", WAYS)
def test_rewards_of_a_copied_trainer_keep_their_kind(way, tmp_path):
    reward = [rewards.Cached(shout, tmp_path / "scores"), length_reward]
    trainer = make_trainer("jbond", reward=reward)
    copied = WAYS[way](trainer)
    assert copied.reward[0].path == reward[0].path
    assert copied.reward[0].reward.origin is shout
    assert copied.reward[1] is length_reward


def test_a_lambda_is_copied_but_not_pickled():
    reward = lambda prompts, completions: [0.0] * len(prompts)  # noqa: E731
    trainer = make_trainer("jbond", reward=reward)
    assert copy.deepcopy(trainer).reward is reward
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(trainer)


def quantile_model():
    model = keras_bond.QuantileModel(make_policy(num_layers=1).backbone)
    model.compile(keras.optimizers.Adam(1e-4))
    model.optimizer.build(model.trainable_variables)
    return model


def reward_model(lora=False):
    policy = make_policy(num_layers=1)
    if lora:
        policy.backbone.enable_lora(2)
    model = keras_bond.RewardModel(policy, max_length=24)
    model.compile(keras.optimizers.Adam(1e-5))
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("lora", [False, True])
def test_copies_of_reward_models_are_whole(lora):
    model = reward_model(lora)
    disturb(model)
    for way in WAYS.values():
        copied = way(model)
        assert_independent_copy(model, copied)
        assert copied.encode_pairs([{"chosen": "a", "rejected": "b"}])


def test_copies_of_quantile_models_are_whole(tmp_path):
    model = quantile_model()
    disturb(model)
    for way in WAYS.values():
        assert_independent_copy(model, way(model))
    # It is also compiled when it is loaded.
    model.save(tmp_path / "quantiles.keras")
    loaded = keras.saving.load_model(tmp_path / "quantiles.keras")
    assert_independent_copy(model, loaded)
    assert loaded.loss.from_logits
    assert [path.name for path in tmp_path.iterdir()] == ["quantiles.keras"]


def test_clones_say_that_they_lack_everything():
    """A config has neither weights nor the vocabulary of a tokenizer."""
    refused = "made from its config alone.*Received: a "

    def unregistered(prompts, completions):
        return length_reward(prompts, completions)

    trainer = make_trainer("jbond", reward=unregistered)
    with pytest.warns(UserWarning, match="reward could not be loaded"):
        clone = keras.models.clone_model(trainer)
    for use in (clone.fit, clone.evaluate, clone.generate, clone.predict):
        with pytest.raises(ValueError, match=refused + "JBond"):
            use(PROMPTS)
    clone = keras.models.clone_model(reward_model())
    pairs = {"token_ids": np.ones((2, 2, 3), "int32")}
    pairs["padding_mask"] = np.ones((2, 2, 3), bool)
    with pytest.raises(ValueError, match=refused + "RewardModel"):
        clone.fit(pairs, verbose=0)
    clone = keras.models.clone_model(quantile_model())
    with pytest.raises(ValueError, match=refused + "QuantileModel"):
        clone({name: rows[:, 0] for name, rows in pairs.items()})
    # Who gives it weights may use it.
    clone.set_weights(quantile_model().get_weights())
    clone({name: rows[:, 0] for name, rows in pairs.items()})


@keras.saving.register_keras_serializable("keras_bond_tests")
class Scale(keras.layers.Layer):
    """A reward with one weight."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = self.add_weight(shape=(), initializer="ones")
        self.built = True

    def call(self, inputs):
        token_ids = keras.ops.cast(inputs["token_ids"], "float32")
        return self.scale * keras.ops.sum(token_ids, axis=-1)


@pytest.mark.parametrize("way", WAYS)
def test_copies_of_rewards_score_alike(way, tmp_path):
    drawn = samples(["a", "bb", "c", "dd"], num_samples=2)
    layer = Scale()
    given = {
        "memory": rewards.Cached(length_reward),
        "file": rewards.Cached(length_reward, tmp_path / "scores.sqlite"),
        "concurrent": rewards.ConcurrentReward(length_reward, timeout=60.0),
        "fused": rewards.RankFusion([length_reward, layer]),
        "model": rewards.Cached(layer),
    }
    for name, reward in given.items():
        expected = reward(drawn)
        copied = WAYS[way](reward)
        np.testing.assert_array_equal(copied(drawn), expected, name)
        if isinstance(reward, rewards.Cached):
            assert (copied.hits, copied.misses) == (4, 4)


def test_a_copied_model_reward_has_weights_of_its_own():
    """Pins: what was compiled still reads the original's."""
    reward = rewards.get(Scale())
    copied = copy.deepcopy(reward)
    drawn = samples(["a", "b"])
    expected = reward(drawn)
    copied.model.scale.assign(2.0)
    np.testing.assert_array_equal(reward(drawn), expected)
    np.testing.assert_array_equal(copied(drawn), 2 * expected)


@pytest.mark.parametrize("way", WAYS)
def test_copies_of_callbacks(way, tmp_path):
    for callback in (
        callbacks.AnchorEMA(0.1),
        callbacks.AnchorRefresh(3),
        callbacks.AnchorFixed(),
        callbacks.ProgressBar(["reward"]),
        callbacks.HeldOut(PROMPTS, tmp_path, gold_reward=length_reward),
    ):
        copied = WAYS[way](callback)
        assert type(copied) is type(callback)
        for name in ("update_rate", "every", "names", "prompts", "points"):
            value = getattr(callback, name, None)
            assert getattr(copied, name, None) == value
