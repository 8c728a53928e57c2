"""Files of weights that are damaged, do not fit on the disk, or are links."""

import os
import shutil
import stat
import zipfile

import keras
import numpy as np
import pytest

import keras_bond
from keras_bond import files
from tests.numeric import values_of
from tests.tiny import length_reward
from tests.tiny import make_policy

FILES = ("x.weights.h5", "x.keras")


def make_bond(reward=length_reward, **backbone):
    policy = make_policy(num_layers=1, **backbone)
    policy.backbone.enable_lora(2)
    bond = keras_bond.JBond(
        policy, reward, max_prompt_length=12, max_completion_length=3
    )
    bond.compile(keras.optimizers.Adam(1e-5))
    return bond


def everything(bond):
    return values_of([*bond.variables, *bond.optimizer.variables])


def move(bond):
    for variable in [*bond.variables, *bond.optimizer.variables]:
        if "float" in variable.dtype:
            variable.assign(variable + 1.0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A trainer, and the bytes of files of one with other weights."""
    folder, other = tmp_path_factory.mktemp("saved"), make_bond()
    move(other)
    other.save(folder / "x.keras")
    other.save_weights(folder / "x.weights.h5")
    contents = {name: (folder / name).read_bytes() for name in FILES}
    return make_bond(), contents


DAMAGES = {
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "half": lambda content: content[: len(content) // 2],
    "all but the end": lambda content: content[:-100],
    "zeros": lambda content: bytes(len(content)),
    "zeros at the end": lambda content: content[:1000] + bytes(10**6),
    "text": lambda content: b"Not found\n",
}


def assert_refused(bond, path, error, match):
    before, bond.progress.is_loaded = everything(bond), True
    with pytest.raises(error, match=match) as caught:
        bond.load_weights(path)
    assert str(path) in str(caught.value)
    assert bond.progress.is_loaded
    for a, b in zip(before, everything(bond)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_named_by_an_os_error(saved, tmp_path, name, damage):
    """Pins: a `ValueError`, of which Keras's backup takes no notice."""
    bond, contents = saved
    path = tmp_path / name
    path.write_bytes(DAMAGES[damage](contents[name]))
    assert_refused(bond, path, OSError, "is damaged: load an older one")


def test_a_changed_byte_in_an_archive_is_seen(saved, tmp_path):
    """Pins: Keras reads weights in an archive without their checksum."""
    bond, contents = saved
    path = tmp_path / "x.keras"
    path.write_bytes(contents["x.keras"])
    with zipfile.ZipFile(path) as archive:
        weights = archive.read("model.weights.h5")
    value = everything(bond)[0] + np.float32(1.0)
    place = contents["x.keras"].index(weights) + weights.index(value.tobytes())
    changed = bytearray(contents["x.keras"])
    changed[place + 5] ^= 1
    path.write_bytes(changed)
    assert_refused(bond, path, OSError, "has another checksum")


def test_missing_files_and_those_of_others_are_no_damage(saved, tmp_path):
    bond, _ = saved
    assert_refused(
        bond, tmp_path / "no.weights.h5", FileNotFoundError, "No such file"
    )
    other = make_bond(hidden_dim=24)
    for name in FILES:
        save = other.save if name.endswith("keras") else other.save_weights
        save(tmp_path / name)
        match = "weights of a model that is built and compiled in the same way"
        assert_refused(bond, tmp_path / name, ValueError, match)


def test_a_failed_load_does_not_change_the_reward(tmp_path):
    """Keras loads what fits, before it says what does not."""
    path, rewards = tmp_path / "x.weights.h5", []
    for width in (24, 16):
        rewards.append(keras.layers.Embedding(100, 1))
        rewards[-1].build()
        bond = make_bond([rewards[-1], length_reward], hidden_dim=width)
        if not path.exists():
            bond.save_weights(path)
    before = values_of(rewards[-1].weights)[0]
    with pytest.raises(ValueError, match="Nothing was changed"):
        bond.load_weights(path)
    np.testing.assert_array_equal(values_of(rewards[-1].weights)[0], before)


@pytest.mark.parametrize("damage", ["empty", "half", "zeros"])
def test_a_backup_falls_back_to_the_one_before(saved, tmp_path, damage):
    bond, contents = make_bond(), saved[1]
    backup = keras.callbacks.BackupAndRestore(tmp_path, double_checkpoint=True)
    backup.set_model(bond)
    backup._save_model()
    expected = everything(bond)
    move(bond)
    backup._save_model()
    latest = tmp_path / "latest.weights.h5"
    latest.write_bytes(DAMAGES[damage](contents["x.weights.h5"]))
    restored = make_bond()
    backup.set_model(restored)
    backup.on_train_begin()
    for a, b in zip(expected, everything(restored)):
        np.testing.assert_array_equal(a, b)
    assert restored.progress.is_loaded


@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_is_seen_beforehand(saved, tmp_path, monkeypatch, name):
    """HDF5 would end the process; the estimate is not less than the file."""
    bond, contents = saved
    save = bond.save if name.endswith(".keras") else bond.save_weights
    path = tmp_path / name
    path.write_bytes(b"old")
    free = len(contents["x.weights.h5"]) - 1
    monkeypatch.setattr(files, "SPARE_BYTES", 0)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, free)
    )
    with pytest.raises(OSError, match=f"with room.*bytes needed, {free:,} fr"):
        save(path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [name]


def test_a_saved_file_keeps_its_mode_and_its_place(saved, tmp_path):
    bond, _ = saved
    target, link = tmp_path / "real.weights.h5", tmp_path / "link.weights.h5"
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to(target)
    bond.save_weights(link)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    make_bond().load_weights(target)


def test_reward_models_are_loaded_whole_or_not_at_all(tmp_path):
    """Compiled or not; the last of their weights does not fit."""
    path = tmp_path / "x.weights.h5"
    other = keras_bond.RewardModel(make_policy(num_layers=1, hidden_dim=24))
    other.save_weights(path)
    model = keras_bond.RewardModel(make_policy(num_layers=1))
    before = values_of(model.variables)
    with pytest.raises(ValueError, match="Nothing was changed"):
        model.load_weights(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OSError, match="is damaged"):
        model.load_weights(path)
    for a, b in zip(before, values_of(model.variables)):
        np.testing.assert_array_equal(a, b)
