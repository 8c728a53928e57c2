"""The anchor moves once per update; a loaded run continues unchanged."""

import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_bond
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

CAN_STACK_STEPS = keras.config.backend() != "torch"


def make_bond(lora=False, reward=length_reward, **compile_arguments):
    policy = make_policy(num_layers=1)
    if lora:
        keras.utils.set_random_seed(0)
        policy.backbone.enable_lora(2)
    bond = keras_bond.JBond(
        policy, reward, max_prompt_length=12, max_completion_length=5, seed=1
    )
    compile_arguments.setdefault("optimizer", keras.optimizers.Adam(1e-5))
    bond.compile(**{**COMPILED_QUICKLY, **compile_arguments})
    return bond


class Trace(keras.callbacks.Callback):
    """Keeps policy and anchor after every step."""

    def on_train_begin(self, logs=None):
        self.policy, self.anchor = [], []
        self.on_train_batch_end(0)

    def on_train_batch_end(self, batch, logs=None):
        if keras.config.backend() == "jax":
            self.model.jax_state_sync()
        self.policy.append(values_of(self.model.policy.trainable_variables))
        self.anchor.append(values_of(self.model.anchor.values))


def trace(rule, **compile_arguments):
    compile_arguments.setdefault("optimizer", keras.optimizers.SGD(1e-5))
    bond, kept = make_bond(**compile_arguments), Trace()
    bond.fit(PROMPTS, batch_size=2, verbose=0, callbacks=[rule, kept])
    return kept


def moves(steps):
    return [
        any((a != b).any() for a, b in zip(old, new))
        for old, new in zip(steps, steps[1:])
    ]


@pytest.fixture(scope="module")
def averaged():
    return trace(keras_bond.callbacks.AnchorEMA(0.1))


def test_the_average_is_the_papers(averaged):
    """θ_anchor ← (1 - η) θ_anchor + η θ after each of 4 updates (eq. 18)."""
    kept = averaged
    expected = kept.anchor[0]
    for policy, anchor in zip(kept.policy[1:], kept.anchor[1:]):
        expected = [0.9 * e + 0.1 * p for e, p in zip(expected, policy)]
        for e, a in zip(expected, anchor):
            np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-7)
    assert moves(kept.anchor) == [True] * 4


def test_refresh_copies_at_every_second_update():
    kept = trace(keras_bond.callbacks.AnchorRefresh(every=2))
    assert moves(kept.anchor) == [False, True, False, True]
    for step in (2, 4):
        for p, a in zip(kept.policy[step], kept.anchor[step]):
            np.testing.assert_array_equal(p, a)


def test_accumulation_moves_policy_and_anchor_once_for_two_batches():
    """One optimizer update, one anchor update: not one for each batch."""
    optimizer = keras.optimizers.Adam(1e-4, gradient_accumulation_steps=2)
    kept = trace(keras_bond.callbacks.AnchorEMA(0.1), optimizer=optimizer)
    assert moves(kept.policy) == [False, True, False, True]
    assert moves(kept.anchor) == [False, True, False, True]


@pytest.mark.skipif(
    not CAN_STACK_STEPS, reason="Keras has no steps_per_execution on PyTorch"
)
def test_stacked_steps_move_the_anchor_as_single_ones(averaged):
    """`on_train_batch_end` fires once for two steps; the anchor moves twice."""
    two = trace(keras_bond.callbacks.AnchorEMA(0.1), steps_per_execution=2)
    assert len(two.anchor) == 3
    for a, b in zip(averaged.anchor[-1], two.anchor[-1]):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_loaded_run_continues_bit_for_bit(tmp_path):
    """Policy, anchor, optimizer, random state, order of prompts.

    Runs with adapters continue in `test_resume.py`.
    """
    whole = make_bond()
    whole.fit(PROMPTS, batch_size=4, epochs=2, verbose=0)
    first = make_bond()
    first.fit(PROMPTS, batch_size=4, epochs=1, verbose=0)
    first.save_weights(tmp_path / "half.weights.h5")
    second = make_bond()
    second.load_weights(tmp_path / "half.weights.h5")
    second.fit(PROMPTS, batch_size=4, epochs=2, initial_epoch=1, verbose=0)
    for kept, others in zip(lasting(whole), lasting(second)):
        np.testing.assert_array_equal(*values_of([kept, others]), kept.path)


def lasting(bond):
    """Everything that a run continues from, which excludes metrics."""
    return [
        *bond.trainable_variables,
        *bond.non_trainable_variables,
        *bond.optimizer.variables,
    ]


@pytest.mark.parametrize("lora", [False, True])
def test_a_saved_model_loads_whole(tmp_path, lora):
    bond = make_bond(lora)
    if lora:
        bond.fit(PROMPTS, batch_size=4, verbose=0)
    else:
        for variable in bond.variables:
            if keras.backend.is_float_dtype(variable.dtype):
                variable.assign_add(0.01 * keras.ops.ones(variable.shape))
    bond.save(tmp_path / "bond.keras")
    loaded = keras.saving.load_model(
        tmp_path / "bond.keras", custom_objects={"length_reward": length_reward}
    )
    assert loaded.reward is length_reward
    for a, b in zip(
        values_of(bond.policy.variables), values_of(loaded.policy.variables)
    ):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(
        values_of(bond.anchor.weights), values_of(loaded.anchor.weights)
    ):
        np.testing.assert_array_equal(a, b)
    # The tokenizer gets its vocabulary after the trainer was built.
    assert loaded.tokenizer.encode(PROMPTS) == bond.tokenizer.encode(PROMPTS)
    assert loaded.generate(PROMPTS[:2]) == bond.generate(PROMPTS[:2])
    if lora:
        loaded.fit(PROMPTS, batch_size=4, verbose=0)


def test_a_model_saved_with_a_lambda_says_what_is_missing(tmp_path):
    bond = make_bond(reward=lambda prompts, completions: [0.0] * len(prompts))
    bond.save(tmp_path / "bond.keras")
    with pytest.warns(UserWarning, match="reward could not be loaded"):
        loaded = keras.saving.load_model(tmp_path / "bond.keras")
    with pytest.raises(ValueError, match="without its reward"):
        loaded.fit(PROMPTS, batch_size=4, verbose=0)
    loaded.reward = length_reward
    loaded.fit(PROMPTS, batch_size=4, verbose=0)


def test_stock_callbacks_keep_the_run(tmp_path):
    """`BackupAndRestore` and `ModelCheckpoint` go through `save_weights`."""
    bond = make_bond(lora=True)
    checkpoint = tmp_path / "best.weights.h5"
    bond.fit(
        PROMPTS,
        batch_size=4,
        verbose=0,
        callbacks=[
            keras.callbacks.BackupAndRestore(tmp_path / "backup"),
            keras.callbacks.ModelCheckpoint(checkpoint, save_weights_only=True),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        ],
    )
    assert "bond/win_rate" in (tmp_path / "log.csv").read_text()
    make_bond(lora=True).load_weights(checkpoint)


def test_adapters_are_never_merged_by_a_foreign_save(tmp_path):
    """Merging them into the kernels would count them twice on loading."""
    bond = make_bond(lora=True)
    with pytest.raises(ValueError, match="the model's own `save`"):
        keras.saving.save_weights(bond, tmp_path / "x.weights.h5")


KILLED_IN_A_SAVE = """
import os, signal, sys

import keras
from tests.training.test_anchor_and_saving import make_bond

bond = make_bond(lora=True)
name, path = sys.argv[1:]
bond.optimizer.save_own_variables = lambda store: os.kill(
    os.getpid(), signal.SIGKILL
)
getattr(bond, name)(path)
"""


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "name, file", [("save", "x.keras"), ("save_weights", "x.weights.h5")]
)
def test_a_kill_in_a_save_leaves_the_old_file(tmp_path, name, file):
    bond, path = make_bond(lora=True), tmp_path / file
    getattr(bond, name)(path)
    old = path.read_bytes()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_SAVE, name, str(path)],
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == old
    getattr(bond, name)(path)
    assert [p.name for p in tmp_path.iterdir()] == [file]


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "name, file", [("save", "x.keras"), ("save_weights", "x.weights.h5")]
)
def test_a_save_that_fails_leaves_the_old_file_alone(tmp_path, name, file):
    def fail(store):
        raise OSError("disk full")

    bond, path = make_bond(), tmp_path / file
    getattr(bond, name)(path)
    old = path.read_bytes()
    bond.optimizer.save_own_variables = fail
    with pytest.raises(OSError, match="disk full"):
        getattr(bond, name)(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == [file]


@keras.saving.register_keras_serializable("keras_bond_tests")
class Scaled(keras.layers.Layer):
    """A reward with one weight: the sum of the token ids, scaled."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = self.add_weight(shape=(), initializer="zeros")
        self.built = True

    def call(self, inputs):
        token_ids = keras.ops.cast(inputs["token_ids"], "float32")
        return keras.ops.sum(token_ids, axis=-1) * self.scale


@pytest.mark.filterwarnings(r"error:`compile\(\)` was not called")
@pytest.mark.parametrize("in_list", [False, True])
def test_a_layer_that_rewards_is_saved_with_its_weights(tmp_path, in_list):
    scaled = Scaled()
    bond = make_bond(reward=[scaled, length_reward] if in_list else scaled)
    scaled.scale.assign(3.0)
    bond.save(tmp_path / "bond.keras")
    loaded = keras.saving.load_model(
        tmp_path / "bond.keras", custom_objects={"length_reward": length_reward}
    )
    reward = loaded.reward[0] if in_list else loaded.reward
    np.testing.assert_array_equal(*values_of([reward.scale, scaled.scale]))
