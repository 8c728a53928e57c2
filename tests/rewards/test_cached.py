"""Scores that are saved and returned again, in memory and in files."""

import contextlib
import dataclasses
import datetime
import decimal
import json
import math
import os
import sqlite3
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest

import keras_bond
from keras_bond import rewards
from keras_bond.rewards import cached as cached_lib
from tests.numeric import values_of
from tests.rewards.samples import samples
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

pytestmark = pytest.mark.one_backend


class Counting:
    def __init__(self):
        self.asked = []

    def __call__(self, prompts, completions, **columns):
        self.asked.append(list(zip(prompts, completions)))
        return [None if c == "?" else float(len(c)) for c in completions]


@pytest.fixture(params=["memory", "file"])
def path(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "scores.sqlite"


def test_a_reward_is_called_once_for_each_completion(path):
    counting = Counting()
    cached = rewards.Cached(counting, path)
    texts = ["a", "bb", "a", "bb", "a", "ccc"]
    expected = [1, 2, 1, 2, 1, 3]
    assert cached(samples(texts, num_samples=3)).tolist() == expected
    assert counting.asked[0] == [
        ("p0", "a"),
        ("p0", "bb"),
        ("p1", "bb"),
        ("p1", "a"),
        ("p1", "ccc"),
    ]
    assert cached(samples(texts, num_samples=3)).tolist() == expected
    assert len(counting.asked) == 1
    assert (cached.misses, cached.hits) == (5, 7)
    columns = {"answer": list("xyzxyz")}
    cached(samples(texts, 3, columns))
    assert len(counting.asked) == 2


def test_none_is_an_answer_and_nothing_is_forgotten(path):
    counting = Counting()
    cached = rewards.Cached(counting, path)
    for texts in (["a"], ["?"], ["b"], ["?"], ["a"]):
        got = cached(samples(texts))
        np.testing.assert_array_equal(got, [np.nan if texts == ["?"] else 1])
    asked = [text for batch in counting.asked for _, text in batch]
    assert asked == ["a", "?", "b"]


def test_scores_come_back_bit_for_bit(path):
    """Also -0.0, which a column of numbers in SQLite does not keep."""
    values = [-0.0, 0.0, 0.1, 5e-324, -1e30, 7.0]
    cached = rewards.Cached(lambda prompts, completions: values, path)
    part = samples(list("abcdef"))
    expected = np.array(values, "float64").tobytes()
    assert cached(part).tobytes() == cached(part).tobytes() == expected
    assert cached(part).dtype == "float64"


def test_all_that_a_reward_reads_tells_completions_apart():
    """Columns, turns, tokens under the mask, and whether it has ended."""
    turns = [[{"role": "user", "content": "p"}]]
    parts = [
        samples(["a"]),
        samples(["a"], columns={"n": [1]}),
        samples(["a"], columns={"n": ["1"]}),
        samples(["a"], columns={"m": [1]}),
        samples(["a"], terminated=[True]),
        samples(["a"], terminated=[False]),
        samples(["a"], conversations=turns),
        samples(["b"]),
    ]
    keys = {cached_lib.keys_of(part, False)[0] for part in parts}
    assert len(keys) == len(parts)
    padded = samples(["a", "aaa"])
    assert cached_lib.keys_of(padded, False)[0] in keys


def test_rewards_that_compare_are_keyed_by_the_group(path):
    """One other completion, or another order, is another group."""
    counting = Counting()
    cached = rewards.Cached(rewards.RankFusion([counting]), path)
    first = cached(samples(["a", "bb", "a", "ccc"], num_samples=2))
    assert first.tolist() == [0, 1, 0, 1]
    again = cached(samples(["a", "bb", "a", "ccc"], num_samples=2))
    assert again.tolist() == [0, 1, 0, 1] and len(counting.asked) == 1
    mixed = cached(samples(["a", "bb", "a", "a"], num_samples=2))
    assert mixed.tolist() == [0, 1, 0.5, 0.5]
    assert counting.asked[1] == [("p1", "a"), ("p1", "a")]
    assert cached.hits == 4 + 2 and cached.misses == 4 + 2
    if path is not None:
        replayed = rewards.Cached(None, path)
        part = samples(["a", "bb", "a", "a"], num_samples=2)
        assert replayed(part).tolist() == [0, 1, 0.5, 0.5]
        with pytest.raises(ValueError, match="must hold the score of every"):
            replayed(samples(["a", "bb"], num_samples=1))


def test_equal_completions_of_a_group_keep_their_own_scores(tmp_path):
    scores = rewards.get(
        [lambda prompts, completions: list(range(len(prompts)))]
    )
    path = tmp_path / "scores.sqlite"
    part = samples(["a", "a", "b"])
    assert rewards.Cached(scores, path)(part).tolist() == [0, 1, 2]
    assert rewards.Cached(None, path)(part).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "reward",
    [
        lambda: rewards.RankFusion([length_reward]),
        lambda: [length_reward, length_reward],
        lambda: rewards.UnfinishedLast(length_reward),
        lambda: rewards.ConcurrentReward(rewards.RankFusion([length_reward])),
    ],
)
def test_what_compares_is_known(reward):
    assert rewards.Cached(reward()).compares
    assert not rewards.Cached(length_reward).compares


@keras.saving.register_keras_serializable(package="tests")
class CountTokens(keras.layers.Layer):
    def call(self, inputs):
        mask = keras.ops.cast(inputs["padding_mask"], "float32")
        return keras.ops.sum(mask, axis=1)


def test_models_are_cached_by_their_tokens(path):
    cached = rewards.Cached(CountTokens(), path)
    tokens = samples(["a", "bb", "a"])
    bare = rewards.Samples(
        None, None, {}, tokens.token_ids, tokens.padding_mask, 3
    )
    assert cached(bare).tolist() == [1, 2, 1]
    assert cached(bare).tolist() == [1, 2, 1]
    assert (cached.misses, cached.hits) == (2, 4)


def make_bond(reward):
    bond = keras_bond.JBond(
        make_policy(scale=2.0),
        reward,
        max_prompt_length=12,
        max_completion_length=5,
        seed=1,
    )
    rate = keras.optimizers.schedules.ExponentialDecay(1e-2, 1000, 1.0)
    bond.compile(keras.optimizers.SGD(rate), **COMPILED_QUICKLY)
    return bond


def test_a_run_repeats_bit_for_bit_without_its_reward(tmp_path):
    """With a reward that says something else each time it is called."""
    generator = np.random.default_rng(0)

    def noise(prompts, completions):
        return generator.normal(size=len(prompts)).tolist()

    path = tmp_path / "scores.sqlite"
    bond = make_bond(rewards.Cached(noise, path))
    logs = bond.fit(PROMPTS, batch_size=4, epochs=2, verbose=0).history
    again = make_bond(rewards.Cached(None, path))
    repeated = again.fit(PROMPTS, batch_size=4, epochs=2, verbose=0).history
    for name in ("step_time", "tokens_per_second"):
        del logs[name], repeated[name]
    assert repeated == logs
    for a, b in zip(values_of(bond.variables), values_of(again.variables)):
        np.testing.assert_array_equal(a, b)
    with contextlib.closing(sqlite3.connect(path)) as file:
        found = file.execute("SELECT prompt, completion FROM scores").fetchall()
    assert {prompt for prompt, _ in found} == set(PROMPTS)
    assert bond._scorer.misses == len(found) <= 2 * len(PROMPTS) * 3
    with pytest.raises(ValueError, match="must hold the score of every"):
        again.fit(["fox fox", "lazy fox"], verbose=0)


def test_replays_refuse_what_is_new_and_say_what_to_do(tmp_path):
    path = tmp_path / "scores.sqlite"
    rewards.Cached(Counting(), path)(samples(["a", "?"]))
    replayed = rewards.Cached(None, path)
    np.testing.assert_array_equal(replayed(samples(["?", "a"])), [np.nan, 1])
    assert math.isnan(replayed(samples(["?"]))[0])
    with pytest.raises(ValueError, match="`Cached.reward, path.`.*'ccc'"):
        replayed(samples(["a", "ccc"]))
    assert (replayed.misses, replayed.hits) == (0, 3)


KILLED = """
import os, sys
from keras_bond import rewards
from tests.rewards.samples import samples

calls = []
def dying(prompts, completions):
    calls.append(completions)
    if len(calls) == 3:
        os._exit(9)
    return [float(len(c)) for c in completions]

cached = rewards.Cached(dying, sys.argv[1])
for texts in (["a", "bb"], ["ccc"], ["dddd"]):
    cached(samples(texts))
"""


def test_a_killed_run_keeps_what_was_answered(tmp_path):
    """The run after it calls the reward for the rest only, in one process."""
    path = tmp_path / "scores.sqlite"
    died = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert died.returncode == 9
    counting = Counting()
    cached = rewards.Cached(counting, path)
    for texts in (["a", "bb"], ["ccc"], ["dddd"]):
        assert cached(samples(texts)).tolist() == [len(t) for t in texts]
    assert counting.asked == [[("p0", "dddd")]]


def test_an_unfinished_transaction_is_undone(tmp_path):
    """All completions of a call are saved, or none of them."""
    path = tmp_path / "scores.sqlite"
    store = rewards.Cached(length_reward, path)._store
    good = (b"a", 1.0, None, None)
    with pytest.raises(ValueError, match="scores.sqlite"):
        store.write([good, (b"b", 1.0)])
    assert store.read([b"a"]) == {}
    store.write([good, (b"a", 2.0, None, None)])
    assert store.read([b"a", b"b"]) == {b"a": 1.0}
    many = [(bytes([i, j]), i, None, None) for i in range(9) for j in range(99)]
    store.write(many)
    assert len(store.read([key for key, *_ in many])) == len(many)


def test_threads_share_it(path):
    """Inside `ConcurrentReward`; and each gets its own scores."""
    counting = Counting()
    concurrent = rewards.ConcurrentReward(
        rewards.Cached(counting, path), max_workers=8
    )
    texts = ["x" * (i % 7 + 1) for i in range(120)]
    for _ in range(2):
        got = concurrent(samples(texts, num_samples=3))
        assert got.tolist() == [len(text) for text in texts]
    assert len(counting.asked) == 40
    assert concurrent.reward.hits + concurrent.reward.misses == 240


def test_the_first_answer_counts_in_every_thread(tmp_path):
    """Two threads ask at once and get different answers: both return one."""
    barrier, answers = threading.Barrier(2), iter([1.0, 2.0])

    def fickle(prompts, completions):
        barrier.wait(30)
        return [next(answers)]

    cached = rewards.Cached(fickle, tmp_path / "scores.sqlite")
    got = []
    threads = [
        threading.Thread(target=lambda: got.append(cached(samples(["a"]))[0]))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == 2 and got[0] == got[1]


WRITER = """
import sys
from keras_bond import rewards
from tests.rewards.samples import samples

def lengths(prompts, completions):
    return [float(len(c)) for c in completions]

cached = rewards.Cached(lengths, sys.argv[1])
for i in range(40):
    cached(samples(["x" * (i + 1), sys.argv[2] * (i + 1)]))
"""


def test_two_processes_share_a_file(tmp_path):
    path = str(tmp_path / "scores.sqlite")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, letter])
        for letter in "yz"
    ]
    assert [writer.wait(300) for writer in writers] == [0, 0]
    replayed = rewards.Cached(None, path)
    for i in range(40):
        texts = [letter * (i + 1) for letter in "xyz"]
        assert replayed(samples(texts)).tolist() == [i + 1] * 3


ODD = {
    "numpy": [np.float32(0.1), np.int64(3), np.str_("é"), np.bool_(True)],
    "nested": [[1, [2.0, None]], (1, "a"), {"b": [1], 2: "c"}, {"x", "y", 1}],
    "arrays": [np.eye(2), np.array([["a", "é"]]), np.array([None, {1: "b"}])],
    "text": ["🎈\x00", "\ud800", b"\xff", " at 0x12"],
    "others": [
        decimal.Decimal("1.50"),
        datetime.date(2024, 1, 2),
        float("nan"),
    ],
}
KEYS = """
from tests.rewards.samples import samples
from tests.rewards.test_cached import ODD
from keras_bond.rewards import cached
for name, values in ODD.items():
    for value in values:
        part = samples(["a"], columns={name: [value]})
        print(cached.keys_of(part, True)[0].hex())
"""


def test_keys_are_the_same_in_every_process():
    """Whatever the seed of hashes, by which sets are ordered."""
    process = subprocess.run(
        [sys.executable, "-c", KEYS],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    keys = [
        cached_lib.keys_of(samples(["a"], columns={name: [value]}), True)[0]
        for name, values in ODD.items()
        for value in values
    ]
    assert process.stdout.split() == [key.hex() for key in keys]
    assert len(set(keys)) == sum(map(len, ODD.values()))


def test_odd_text_is_saved_and_found(tmp_path):
    path = tmp_path / "scores.sqlite"
    texts = ["🎈\x00", "\ud800", ""]
    rewards.Cached(length_reward, path)(samples(texts))
    assert rewards.Cached(None, path)(samples(texts)).tolist() == [2, 1, 0]


@dataclasses.dataclass
class Row:
    content: object


def test_objects_without_a_value_are_named():
    """Their address is another one in the next run."""
    frame = pytest.importorskip("pandas").DataFrame({"a": range(500)})
    for value in (object(), [object()], length_reward, frame, Row(frame)):
        part = samples(["a"], columns={"thing": [value]})
        with pytest.raises(TypeError, match="can be compared in another run"):
            rewards.Cached(length_reward)(part)


def test_masks_are_part_of_the_value():
    for shape in ((8,), (2, 2, 2)):
        array = np.ma.zeros(shape)
        texts = {cached_lib.canonical_text(array)}
        array[0] = np.ma.masked
        assert cached_lib.canonical_text(array) not in texts
        texts.add(cached_lib.canonical_text(Row(array)))
        assert cached_lib.canonical_text(Row(np.ma.zeros(shape))) not in texts
    long = [cached_lib.canonical_text([10**5000 + i]) for i in (0, 0, 1)]
    assert long[0] == long[1] != long[2]
    days = np.array(["2024-01-02", "NaT"], "datetime64[ns]")
    assert "2024-01-02" in cached_lib.canonical_text(days)


keras.saving.register_keras_serializable(package="tests")(length_reward)


def test_a_loaded_model_opens_no_file(tmp_path):
    path = tmp_path / "scores.sqlite"
    bond = make_bond(rewards.Cached(length_reward, path))
    path.unlink()
    bond.save(tmp_path / "bond.keras")
    with pytest.warns(UserWarning, match="loaded without its file.*sqlite"):
        loaded = keras.saving.load_model(tmp_path / "bond.keras")
    assert isinstance(loaded.reward, rewards.Cached)
    assert loaded.reward.path is None and not path.exists()
    loaded.fit(PROMPTS, batch_size=8, verbose=0)


def test_a_loaded_model_replays_nothing(tmp_path):
    path = tmp_path / "scores.sqlite"
    rewards.Cached(length_reward, path)
    bond = make_bond(rewards.Cached(None, path))
    bond.save(tmp_path / "bond.keras")
    with pytest.warns(UserWarning, match="could not be loaded"):
        keras.saving.load_model(tmp_path / "bond.keras")
    config = json.loads(
        json.dumps(keras.saving.serialize_keras_object(bond.reward))
    )
    with pytest.raises(ValueError, match=r"`bond.reward = .*Cached\(None, pa"):
        keras.saving.deserialize_keras_object(config)


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ((None,), ValueError, "`reward` must be given"),
        ((None, "gone.sqlite"), FileNotFoundError, "gone.sqlite"),
        ((length_reward, "gone/a.sqlite"), FileNotFoundError, "gone/a.sqlite"),
        ((length_reward, 3), TypeError, "`path` must be the path"),
        ((length_reward, ""), TypeError, "`path` must be the path"),
        ((length_reward, "."), ValueError, "path='.'"),
        ((3,), TypeError, "`reward` must be a function"),
    ],
)
def test_wrong_arguments_are_refused(
    monkeypatch, tmp_path, arguments, error, text
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=text):
        rewards.Cached(*arguments)
    assert not list(tmp_path.iterdir())
