"""After any error out of `fit` or `evaluate` the model holds its last state.

On JAX Keras takes the values out of the variables while it trains: an error in
the wrong place used to leave a model without weights.
"""

import types

import keras
import numpy as np
import pytest

import keras_bond
from keras_bond.training import metrics
from keras_bond.training.unscored import Unscored
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

STAGES = (
    "reward",
    "loss",
    "train_batch_end",
    "epoch_end",
    "test_batch_end",
    "validation_reward",
)


class Stop(Exception):
    """Raised on purpose."""


class Fragile(keras_bond.JBond):
    """Raises where it is told to, in the second step that comes there."""

    stage, visits = None, 0

    def visit(self, stage):
        self.visits += stage == self.stage
        if self.visits == 2:
            self.visits = 3
            raise Stop(stage)

    def compute_loss(self, *arguments, **kwargs):
        if self.stage == "loss":
            # The learning stage runs Python when it is compiled only.
            raise Stop("loss")
        return super().compute_loss(*arguments, **kwargs)

    def score(self, drawn, training):
        self.visit("reward" if training else "validation_reward")
        return super().score(drawn, training)


class Raises(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.visit("train_batch_end")

    def on_epoch_end(self, epoch, logs=None):
        self.model.visit("epoch_end")

    def on_test_batch_end(self, batch, logs=None):
        self.model.visit("test_batch_end")


def make_bond(kind, reward, optimizer):
    bond = kind(
        make_policy(num_layers=1),
        reward,
        max_prompt_length=12,
        max_completion_length=3,
        seed=1,
    )
    bond.compile(optimizer, **COMPILED_QUICKLY)
    return bond


@pytest.fixture(scope="module")
def bond():
    return make_bond(Fragile, length_reward, keras.optimizers.SGD(1e-3))


def assert_whole(bond, path):
    """The variables have values, and the policy answers and can be saved."""
    values = values_of(bond.variables + bond.optimizer.variables)
    assert all(np.isfinite(value).all() for value in values)
    assert isinstance(bond.generate(PROMPTS[:1])[0], str)
    bond.save_weights(path / "kept.weights.h5")
    bond.load_weights(path / "kept.weights.h5")
    after = values_of(bond.variables + bond.optimizer.variables)
    for a, b in zip(values, after):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("stage", STAGES)
def test_fit_leaves_a_whole_model(bond, tmp_path, stage):
    bond.stage, bond.visits, bond.stages = stage, 0, {}
    # A run of its own: `assert_whole` loads weights, which would be resumed.
    bond.progress.is_loaded = False
    seen = int(bond.prompts_seen)
    with pytest.raises(Stop):
        bond.fit(
            PROMPTS[:4],
            validation_data=PROMPTS[4:],
            batch_size=2,
            epochs=2,
            verbose=0,
            callbacks=[Raises()],
        )
    bond.stage = None
    # Prompts of whole steps only: what was learned from before the error.
    learned = {"reward": 2, "loss": 0, "train_batch_end": 4, "epoch_end": 8}
    assert int(bond.prompts_seen) - seen == learned.get(stage, 4)
    assert_whole(bond, tmp_path)


def test_an_iterator_that_ends_ends_no_epoch(bond):
    """Pins: Keras, which takes it for the end of the data but on PyTorch."""
    bond.stage = None
    bond.reward = lambda prompts, completions: [next(iter(()))]
    for ask in (bond.fit, bond.evaluate):
        with pytest.raises(RuntimeError, match="an iterator .* has ended"):
            ask(PROMPTS[:4], batch_size=2, verbose=0)
    bond.reward = length_reward
    bond.progress.is_loaded = False
    stop = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: next(iter(()))
    )
    expected = pytest.warns(UserWarning, match="2 prompts left in epoch 0")
    if keras.config.backend() == "torch":
        expected = pytest.raises(StopIteration)
    with expected:
        bond.fit(PROMPTS[:4], batch_size=2, verbose=0, callbacks=[stop])


@pytest.mark.parametrize("stage", ["validation_reward", "test_batch_end"])
def test_evaluate_leaves_a_whole_model(bond, tmp_path, stage):
    """And no older state that a later `save_weights` would bring back."""
    bond.stage, bond.visits = stage, 0
    with pytest.raises(Stop):
        bond.evaluate(
            PROMPTS[:4], batch_size=2, verbose=0, callbacks=[Raises()]
        )
    bond.stage = None
    variable = bond.policy.trainable_variables[0]
    variable.assign(variable * 2.0)
    doubled = values_of([variable])[0]
    assert_whole(bond, tmp_path)
    np.testing.assert_array_equal(values_of([variable])[0], doubled)


def test_an_interrupted_prediction_leaves_a_whole_model(
    bond, tmp_path, monkeypatch
):
    def interrupt(token_ids):
        raise KeyboardInterrupt

    monkeypatch.setattr(bond.tokenizer, "decode", interrupt)
    for ask in (bond.predict, bond.fit):
        with pytest.raises(KeyboardInterrupt):
            ask(PROMPTS[:2], batch_size=2, verbose=0)
    monkeypatch.undo()
    assert_whole(bond, tmp_path)
    bond.progress.is_loaded = False


def test_data_that_fail_leave_a_whole_model(bond, tmp_path):
    class Broken(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            if self.asked > 3:
                raise Stop("data")
            self.asked += 1
            return {"prompts": PROMPTS[2 * index : 2 * index + 2]}

    data = Broken()
    data.asked = 0
    with pytest.raises(Stop):
        bond.fit(data, epochs=5, verbose=0)
    assert_whole(bond, tmp_path)


def test_a_reward_may_ask_the_policy_during_fit():
    """Also under its own name, on every backend."""
    answers = []

    def reward(prompts, completions):
        answers.extend(bond.generate(prompts[:1]))
        return length_reward(prompts, completions)

    bond = make_bond(keras_bond.JBond, reward, keras.optimizers.SGD(1e-3))
    bond.fit(PROMPTS[:4], batch_size=2, verbose=0)
    assert len(answers) == 2


def averaging(optimizer):
    return keras.optimizers.LossScaleOptimizer(optimizer(1e-2, use_ema=True))


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer(1e-2), averaging])
def test_a_step_without_any_reward_changes_nothing(wrap):
    """Neither policy, anchor nor optimizer; only the position advances.

    Pins: a loss scale that called the optimizer with zeros, and averages of no
    update, zeros, that became the policy.
    """

    def silent(prompts, completions):
        return [None] * len(prompts)

    optimizer = wrap(keras.optimizers.Adam)
    bond = make_bond(keras_bond.JBond, silent, optimizer)
    kept = [
        *bond.trainable_variables,
        *[v for v in optimizer.variables if "average" not in v.path],
        *bond.anchor.values,
    ]
    before = values_of(kept)
    logs = bond.fit(
        PROMPTS[:4],
        batch_size=2,
        verbose=0,
        callbacks=[keras_bond.callbacks.AnchorEMA(0.1)],
    ).history
    for a, b in zip(before, values_of(kept)):
        np.testing.assert_array_equal(a, b)
    assert int(bond.prompts_seen) == 4
    assert np.isnan(logs["reward"][0]) and np.isnan(logs["reward_std"][0])
    assert logs["loss"] == [0.0]
    assert logs["frac_prompts_unscored"] == [1.0]
    assert logs["train/skipped_steps"] == [0.0]


def test_an_epoch_without_scores_is_not_the_best():
    """Pins: NaN, which no later value is better than; a `val_loss` of 0."""
    stop = keras.callbacks.EarlyStopping("reward", mode="max", patience=3)
    own = Unscored([stop, keras.callbacks.History()])
    stop.set_model(types.SimpleNamespace(stop_training=False))
    stop.on_train_begin()
    best = []
    for epoch, reward in enumerate([np.nan, np.nan, 1.0, np.nan, 2.0, 0.0]):
        own.on_epoch_end(epoch, {"reward": reward})
        stop.on_epoch_end(epoch, {"reward": reward})
        best.append(stop.best)
    np.testing.assert_equal(best, [np.nan, np.nan, 1.0, 1.0, 2.0, 2.0])
    assert not stop.model.stop_training
    trackers = {metrics.UNSCORED: metrics.Mean("unscored")}
    logs = {"loss": keras.ops.zeros(()), "train/skipped_steps": 0.0}
    trackers[metrics.UNSCORED].update_state([1.0, 1.0])
    assert np.isnan(float(metrics.of_evaluation(logs, trackers)["loss"]))
    trackers[metrics.UNSCORED].update_state([0.0])
    assert metrics.of_evaluation(logs, trackers) == {"loss": 0.0}
