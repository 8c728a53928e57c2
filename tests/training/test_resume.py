"""An interrupted run continues as if it had not been interrupted."""

import importlib.util
import itertools
import types

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


def assert_same(bond, expected):
    for variable, values in zip(lasting(bond), expected, strict=True):
        (found,) = values_of([variable])
        np.testing.assert_array_equal(found, values, variable.path)


# A step in the second epoch, of which no multiple is in three epochs.
MIDDLE = BATCHES + 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three epochs in one piece: prompts, states, checkpoints of the middle.

    `after[n]` has what lasts after n epochs.
    """
    folder = tmp_path_factory.mktemp("whole")
    seen, after = [], {}
    bond = make_bond(seen)

    def keep(epoch, logs):
        if keras.config.backend() == "jax":
            bond.jax_state_sync()
        after[epoch + 1] = values_of(lasting(bond))

    callbacks = [
        keras.callbacks.LambdaCallback(on_epoch_end=keep),
        keras.callbacks.ModelCheckpoint(
            folder / "middle.weights.h5",
            save_weights_only=True,
            save_freq=MIDDLE,
        ),
    ]
    if importlib.util.find_spec("orbax"):
        callbacks.append(
            keras.callbacks.OrbaxCheckpoint(
                folder / "orbax", save_freq=MIDDLE, save_on_background=False
            )
        )
    run(bond, callbacks=callbacks)
    return types.SimpleNamespace(folder=folder, seen=seen, after=after)


def run_in_three_pieces(bonds, folder, cuts, save_freq=1, **arguments):
    """Ends a run twice; another trainer restores the backup each time.

    The second time a file that Keras writes in place is left half written.
    """
    for bond, steps in zip(bonds, cuts):
        backup = keras.callbacks.BackupAndRestore(folder, save_freq)
        with pytest.raises(Cut):
            run(bond, callbacks=[backup, CutOff(steps)], **arguments)
    (folder / "training_metadata.json").write_text('{"epoch": 1, "ba')
    backup = keras.callbacks.BackupAndRestore(folder, save_freq)
    run(bonds[-1], callbacks=[backup], **arguments)


def test_a_backup_continues_with_the_next_batch(tmp_path):
    """Cut twice: the file beside the weights names a wrong epoch then."""
    whole_seen, seen, buckets = [], [], (6, 12)
    whole = make_bond(whole_seen, buckets)
    run(whole)
    # The first one again, all of whose state is to be overwritten.
    first, second = make_bond(seen, buckets), make_bond(seen, buckets)
    run_in_three_pieces([first, second, first], tmp_path, (6, 5))
    assert_same(first, values_of(lasting(whole)))
    assert seen == whole_seen


def test_a_backup_of_the_epoch_continues_with_the_next_one(tmp_path, whole):
    first, second = make_bond(), make_bond()
    bonds = [first, second, first]
    run_in_three_pieces(bonds, tmp_path, (6, 5), save_freq="epoch")
    assert_same(first, whole.after[3])


def test_endless_prompts_go_on_where_they_were(tmp_path):
    whole_seen, seen = [], []
    arguments = {"data": endless(), "steps_per_epoch": 3}
    whole = make_bond(whole_seen)
    run(whole, **arguments)
    # The first one again, which was left in the middle of an epoch.
    first, second = make_bond(seen), make_bond(seen)
    run_in_three_pieces([first, second, first], tmp_path, (5, 1), **arguments)
    assert seen == whole_seen
    assert_same(first, values_of(lasting(whole)))


@pytest.mark.one_backend
@pytest.mark.parametrize("cut_after", [8])
def test_a_kill_between_the_weights_and_their_epoch(tmp_path, whole, cut_after):
    """The weights are of a later step than what the other file says."""

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
    assert_same(last, whole.after[3])


@pytest.mark.parametrize("checkpoint", ["middle.weights.h5", "orbax"])
def test_checkpoint_of_the_middle_of_an_epoch(whole, checkpoint):
    if checkpoint == "orbax":
        pytest.importorskip("orbax.checkpoint")
    seen = []
    second = make_bond(seen)
    second.load_weights(whole.folder / checkpoint)
    run(second, epochs=2, initial_epoch=1)
    assert seen == whole.seen[MIDDLE : 2 * BATCHES]
    assert_same(second, whole.after[2])


@pytest.mark.one_backend
def test_only_loaded_weights_go_on(tmp_path):
    """A run that was stopped starts a new epoch, as Keras does."""
    seen = []
    bond = make_bond(seen)
    with pytest.raises(Cut):
        run(bond, callbacks=[CutOff(2)])
    bond.save_weights(tmp_path / "middle.weights.h5")
    del seen[:]
    run(bond, epochs=1)
    assert sorted(set(itertools.chain(*seen))) == sorted(DATA)
    bond.save_weights(tmp_path / "whole.weights.h5")
    del seen[:]
    bond.load_weights(tmp_path / "whole.weights.h5")
    run(bond, epochs=2)
    assert len(seen) == 2 * BATCHES
    # And other prompts start anew.
    del seen[:]
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
