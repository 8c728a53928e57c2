"""An interrupted run continues as if it had not been interrupted."""

import itertools

import keras
import numpy as np
import pytest

import keras_bond
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

# Four batches an epoch, the last of them short.
BATCH, BATCHES = 2, 4
DATA = PROMPTS[:7]


class Cut(Exception):
    """What ends a run in these tests."""


class CutOff(keras.callbacks.Callback):
    """Ends a run after some steps, as a lost machine would."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def on_train_batch_end(self, batch, logs=None):
        self.steps -= 1
        if self.steps == 0:
            raise Cut


def make_bond(seen=None, prompt_buckets=None):
    def reward(prompts, completions):
        if seen is not None:
            seen.append(list(prompts))
        return length_reward(prompts, completions)

    policy = make_policy(num_layers=1)
    keras.utils.set_random_seed(0)
    policy.backbone.enable_lora(2)
    bond = keras_bond.JBond(
        policy,
        reward,
        max_prompt_length=12,
        max_completion_length=3,
        prompt_buckets=prompt_buckets,
        seed=1,
        # Orbax restores by name.
        name="bond",
    )
    bond.compile(keras.optimizers.Adam(1e-3, name="adam"), **COMPILED_QUICKLY)
    return bond


def endless():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(DATA).repeat().batch(BATCH)


def run(bond, data=DATA, epochs=3, callbacks=(), **kwargs):
    if isinstance(data, list):
        kwargs["batch_size"] = BATCH
    rule = keras_bond.callbacks.AnchorEMA(0.1)
    bond.fit(
        data,
        epochs=epochs,
        verbose=0,
        callbacks=[rule, *callbacks],
        **kwargs,
    )


def lasting(bond):
    return [
        *bond.trainable_variables,
        *bond.non_trainable_variables,
        *bond.optimizer.variables,
    ]


def assert_same(one, other):
    for a, b in zip(lasting(one), lasting(other)):
        np.testing.assert_array_equal(*values_of([a, b]), a.path)


@pytest.mark.parametrize("save_freq, buckets", [(1, (6, 12)), ("epoch", None)])
def test_a_backup_continues_with_the_next_batch(tmp_path, save_freq, buckets):
    """Cut twice: the file beside the weights names a wrong epoch then."""
    whole_seen, seen = [], []
    whole = make_bond(whole_seen, buckets)
    run(whole)
    for steps in (6, 5):
        backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq)
        with pytest.raises(Cut):
            run(make_bond(seen, buckets), callbacks=[backup, CutOff(steps)])
    backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq)
    last = make_bond(seen, buckets)
    run(last, callbacks=[backup])
    assert_same(whole, last)
    if save_freq == 1:
        assert seen == whole_seen


def test_endless_prompts_go_on_where_they_were(tmp_path):
    whole_seen, seen = [], []
    whole = make_bond(whole_seen)
    run(whole, endless(), steps_per_epoch=3)
    for steps in (5, 1):
        backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq=1)
        cut = [backup, CutOff(steps)]
        with pytest.raises(Cut):
            run(make_bond(seen), endless(), callbacks=cut, steps_per_epoch=3)
    backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq=1)
    last = make_bond(seen)
    run(last, endless(), callbacks=[backup], steps_per_epoch=3)
    assert seen == whole_seen
    assert_same(whole, last)


@pytest.mark.parametrize("cut_after", [8])
def test_a_kill_between_the_weights_and_their_epoch(tmp_path, cut_after):
    """The weights are of a later step than what the other file says."""
    whole = make_bond()
    run(whole)

    class Backup(keras.callbacks.BackupAndRestore):
        def _save_model(self):
            before = self._read()
            super()._save_model()
            if int(self.model.optimizer.iterations) == cut_after:
                before()
                raise Cut

        def _read(self):
            file = tmp_path / "training_metadata.json"
            old = file.read_text() if file.exists() else None
            return lambda: file.write_text(old)

    with pytest.raises(Cut):
        run(make_bond(), callbacks=[Backup(tmp_path, save_freq=2)])
    backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq=1)
    last = make_bond()
    run(last, callbacks=[backup])
    assert_same(whole, last)


def test_checkpoint_of_the_middle_of_an_epoch(tmp_path):
    file = tmp_path / "middle.weights.h5"
    whole_seen, seen = [], []
    whole = make_bond(whole_seen)
    keep = keras.callbacks.ModelCheckpoint(
        file, save_weights_only=True, save_freq=BATCHES + 2
    )
    run(whole, epochs=2, callbacks=[keep])
    second = make_bond(seen)
    second.load_weights(file)
    run(second, epochs=2, initial_epoch=1)
    assert seen == whole_seen[BATCHES + 2 :]
    assert_same(whole, second)


def test_orbax_keeps_the_run(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    whole_seen, seen = [], []
    whole = make_bond(whole_seen)
    keep = keras.callbacks.OrbaxCheckpoint(
        tmp_path / "orbax", save_freq=BATCHES + 2, save_on_background=False
    )
    run(whole, epochs=2, callbacks=[keep])
    second = make_bond(seen)
    second.load_weights(tmp_path / "orbax")
    run(second, epochs=2, initial_epoch=1)
    assert seen == whole_seen[BATCHES + 2 :]
    assert_same(whole, second)


def test_only_loaded_weights_go_on(tmp_path):
    """A run that was stopped starts a new epoch, as Keras does."""
    seen = []
    bond = make_bond(seen)
    with pytest.raises(Cut):
        run(bond, callbacks=[CutOff(2)])
    del seen[:]
    run(bond, epochs=1)
    assert sorted(set(itertools.chain(*seen))) == sorted(DATA)
    bond.save_weights(tmp_path / "whole.weights.h5")
    del seen[:]
    bond.load_weights(tmp_path / "whole.weights.h5")
    run(bond, epochs=2)
    assert len(seen) == 2 * BATCHES


def test_other_prompts_start_anew(tmp_path):
    bond, seen = make_bond(), []
    with pytest.raises(Cut):
        run(bond, callbacks=[CutOff(2)])
    bond.save_weights(tmp_path / "middle.weights.h5")
    other = make_bond(seen)
    other.load_weights(tmp_path / "middle.weights.h5")
    run(other, PROMPTS[1:], epochs=1)
    assert sorted(set(itertools.chain(*seen))) == sorted(PROMPTS[1:])


def test_a_file_of_another_model_changes_nothing(tmp_path):
    """Loading fails in the middle: adapters of another rank come last."""
    path = tmp_path / "x.weights.h5"
    policy = make_policy(num_layers=1)
    policy.backbone.enable_lora(3)
    other = keras_bond.JBond(
        policy, length_reward, max_prompt_length=12, max_completion_length=3
    )
    other.compile(keras.optimizers.Adam(1e-3), **COMPILED_QUICKLY)
    for variable in policy.variables:
        variable.assign(variable + 1.0)
    other.save_weights(path)
    bond = make_bond()
    before = values_of(bond.variables)
    with pytest.raises(ValueError):
        bond.load_weights(path)
    for a, b in zip(values_of(bond.variables), before):
        np.testing.assert_array_equal(a, b)
