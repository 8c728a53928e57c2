"""Files that are truncated, foreign or newer, or contain code to run."""

import contextlib
import json
import sqlite3
import zipfile

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies

import keras_bond
from keras_bond import data
from keras_bond import evaluation
from keras_bond import rewards
from keras_bond.callbacks.held_out_files import HeldOutFiles
from keras_bond.rewards import Samples
from tests.fuzz.outcomes import examples
from tests.fuzz.outcomes import result_or_named_error
from tests.numeric import values_of
from tests.tiny import length_reward
from tests.tiny import make_policy

pytestmark = pytest.mark.one_backend

RAN = []


def run_me(*arguments, **named):
    """What no file may call."""
    RAN.append(arguments)
    return length_reward


def make_bond(**backbone):
    bond = keras_bond.JBond(
        make_policy(num_layers=1, **backbone),
        length_reward,
        max_prompt_length=12,
        max_completion_length=3,
        seed=1,
    )
    bond.compile(keras.optimizers.SGD(1e-4))
    return bond


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A trainer, and the bytes of all files that this package reads."""
    folder = tmp_path_factory.mktemp("saved")
    bond = make_bond()
    bond.save(folder / "x.keras")
    bond.save_weights(folder / "x.weights.h5")
    rows = [{"prompt": f"question {i}", "answer": str(i)} for i in range(5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines)
    rewards.Cached(length_reward, folder / "scores.sqlite")(some_samples())
    keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(3)]).save(
        folder / "other.keras"
    )
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    return bond, contents, folder


def some_samples():
    return Samples(
        prompts=["a", "b", "c"],
        completions=["x", "yy", "zzz"],
        columns={},
        token_ids=np.arange(3, dtype="int32")[:, None],
        padding_mask=np.ones((3, 1), bool),
        num_samples=1,
        completion_ids=[[5], [6], [7]],
    )


@strategies.composite
def damages(draw):
    """A function that spoils the bytes of a file."""
    share = draw(strategies.floats(0, 0.999))
    kind = draw(strategies.sampled_from(["cut", "foreign", "empty"]))
    foreign = draw(strategies.binary(min_size=1, max_size=300))
    return {
        "cut": lambda content: content[: int(share * len(content))],
        "foreign": lambda content: foreign,
        "empty": lambda content: b"",
    }[kind]


def spoiled(saved, name, damage):
    """A damaged copy of one of the files."""
    _, contents, folder = saved
    path = folder / f"damaged_{name}"
    path.write_bytes(damage(contents[name]))
    return path


def assert_same_values(variables, others):
    for a, b in zip(values_of(variables), values_of(others)):
        np.testing.assert_array_equal(a, b)


def assert_load_changes_nothing(bond, path):
    """Nor does a load that works, for the values are those that were saved."""
    before = values_of(bond.variables)
    _, error = result_or_named_error(lambda: bond.load_weights(path), OSError)
    for a, b in zip(before, values_of(bond.variables)):
        np.testing.assert_array_equal(a, b)
    if error is not None:
        assert isinstance(error, (OSError, ValueError))
        assert "Received" in str(error) and path.name in str(error)
    return error


@examples(40)
@given(damages())
def test_damaged_weights_change_nothing(saved, damage):
    bond, *_ = saved
    for name in ("x.weights.h5", "x.keras"):
        path = spoiled(saved, name, damage)
        assert isinstance(assert_load_changes_nothing(bond, path), OSError)


@examples(25)
@given(damages())
def test_damaged_models_are_refused(saved, damage):
    bond, *_ = saved
    path = spoiled(saved, "x.keras", damage)
    # Keras reads the archive, and names things in its way.
    loaded, _ = result_or_named_error(lambda: load(path), Exception)
    if loaded is not None:
        assert_same_values(bond.policy.variables, loaded.policy.variables)


@examples(60)
@given(damages())
def test_damaged_lines(saved, damage):
    _, _, folder = saved
    path = spoiled(saved, "rows.jsonl", damage)
    rows, error = result_or_named_error(lambda: data.read_jsonl(path))
    if error is None:
        whole = data.read_jsonl(folder / "rows.jsonl")
        assert rows == whole[: len(rows)]
    else:
        assert path.name in str(error)


@examples(60)
@given(damages())
def test_damaged_scores(saved, damage):
    """Right scores or an error that names the file, which is left as it is."""
    path = spoiled(saved, "scores.sqlite", damage)
    before = path.read_bytes()
    for reward in (None, length_reward):
        scores, error = result_or_named_error(
            lambda reward=reward: rewards.Cached(reward, path)(some_samples())
        )
        if error is None:
            assert list(scores) == [1, 2, 3]
            before = None
        else:
            assert path.name in str(error) and path.read_bytes() == before


@examples(60)
@given(
    damages(),
    strategies.sampled_from(["log.csv", "held_out.json", "completions.jsonl"]),
)
def test_damaged_runs(tmp_path_factory, damage, name):
    """A run is drawn and resumed from its files, or the damage is named."""
    folder = tmp_path_factory.mktemp("run")
    contents = {
        "log.csv": b"epoch,reward,kl\n0,0.5,0.1\n1,0.75,0.2\n",
        "held_out.json": b'{"frontier": null, "points": [{"step": 4}], '
        b'"best_gold": [{"step": 4, "rewards": [0.5]}]}',
        "completions.jsonl": b'{"step": 4, "prompt": "a"}\n' * 2,
    }
    path = folder / name
    path.write_bytes(damage(contents[name]))
    if name == "log.csv":
        result_or_named_error(lambda: evaluation.plot_run(path))
        return
    run = HeldOutFiles(folder)
    before = path.read_bytes()
    _, error = result_or_named_error(lambda: (run.read(), run.keep_before(5)))
    if error is not None:
        assert name in str(error)
        assert path.read_bytes() == before
    assert not list(folder.glob("*unfinished*"))


def test_a_file_of_another_kind_stays_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary, " * 100)
    with pytest.raises(ValueError, match="one that `Cached` wrote.*notes.txt"):
        rewards.Cached(length_reward, path)
    assert path.read_text() == "dear diary, " * 100
    path = tmp_path / "other.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE scores (key, score)")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="of another kind"):
        rewards.Cached(length_reward, path)
    assert path.read_bytes() == before


def rewritten(source, target, change, part="config.json"):
    """Copies a `.keras` file with a part of it changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == part:
                content = json.dumps(change(json.loads(content))).encode()
            new.writestr(name, content)


def load(path):
    return keras.saving.load_model(
        path, custom_objects={"length_reward": length_reward}
    )


DANGEROUS = [
    {
        "class_name": "__lambda__",
        "config": {"value": "ignored"},
    },
    {
        "module": "tests.fuzz.test_files",
        "class_name": "run_me",
        "config": {},
        "registered_name": "run_me",
    },
    {
        "module": "tests.fuzz.test_files",
        "class_name": "function",
        "config": "run_me",
        "registered_name": "run_me",
    },
    {
        "module": "os",
        "class_name": "function",
        "config": "system",
        "registered_name": "system",
    },
    {
        "module": "builtins",
        "class_name": "function",
        "config": "eval",
        "registered_name": "eval",
    },
]


@pytest.mark.parametrize("reward", DANGEROUS, ids=lambda x: str(x["config"]))
def test_no_code_is_run_from_a_file(saved, reward):
    """Loading calls nothing that a file names, and says what is missing."""
    _, _, folder = saved
    path = folder / "dangerous.keras"

    def change(config):
        config["config"]["reward"] = reward
        return config

    rewritten(folder / "x.keras", path, change)
    loaded, _ = result_or_named_error(lambda: load(path), Exception)
    assert RAN == []
    if loaded is not None:
        _, error = result_or_named_error(
            lambda: loaded.fit(["the quick", "fox"], batch_size=2, verbose=0),
            Exception,
        )
        assert RAN == []
        assert "loaded without its reward" in str(error)


@examples(25)
@given(
    strategies.sampled_from(
        ["policy", "reward", "seed", "temperature", "max_prompt_length"]
    ),
    strategies.sampled_from(["newer", None, -1, {}, [], {"class_name": "X"}]),
)
def test_configs_of_another_version(saved, name, value):
    _, _, folder = saved
    path = folder / "another.keras"

    def change(config):
        config["config"]["of_a_newer_version"] = 1
        config["config"][name] = value
        return config

    rewritten(folder / "x.keras", path, change)
    loaded, error = result_or_named_error(lambda: load(path), Exception)
    assert loaded is None
    assert str(error)


def test_what_was_saved_by_a_newer_keras_loads(saved):
    bond, _, folder = saved
    path = folder / "newer.keras"

    def change(metadata):
        return {**metadata, "keras_version": "99.0.0"}

    rewritten(folder / "x.keras", path, change, "metadata.json")
    assert_same_values(bond.variables, load(path).variables)


def test_weights_of_another_model_change_nothing(saved, tmp_path):
    bond, _, folder = saved
    other = make_bond(hidden_dim=24)
    path = tmp_path / "other.weights.h5"
    other.save_weights(path)
    for foreign in (path, folder / "other.keras"):
        error = assert_load_changes_nothing(bond, foreign)
        assert isinstance(error, ValueError)
