"""What a run passes to reward functions: columns, own copies, loggers."""

import dataclasses
import threading

import numpy as np
import pytest

from keras_bond import data
from keras_bond import rewards
from keras_bond.data.table import to_table
from keras_bond.rewards import samples as samples_lib
from tests.rewards.samples import samples

PAIR = ["fox", "dog"]
TURNS = [[{"role": "user", "content": text}] for text in PAIR]


@pytest.mark.parametrize(
    "name",
    sorted(
        {*samples_lib.RESERVED} - {"prompts", "completions", "completion_ids"}
    ),
)
def test_columns_do_not_replace_what_a_run_passes(name):
    """Pins: the logged reward was that of the column `completions`."""
    columns = {"prompts": PAIR, name: ["gold", "gold answer"]}
    with pytest.raises(ValueError, match=f"`{name}`.* rename it.* Received"):
        to_table(columns)
    with pytest.raises(ValueError, match="rename it"):
        to_table({"token_ids": [[1], [2]], **columns})
    with pytest.raises(ValueError, match="rename it"):
        data.prompts_from({**columns, "q": PAIR}, "q", columns=[name])
    with pytest.raises(ValueError, match="rename it"):
        samples(PAIR, columns={name: PAIR})


def test_prompts_of_a_template_do_not_become_a_column():
    rows = {"prompt": PAIR, "answer": PAIR}
    read = data.prompts_from(rows, template="Q: {prompt}")
    assert read == {"prompts": ["Q: fox", "Q: dog"], "answer": PAIR}
    with pytest.raises(ValueError, match="rename it"):
        data.prompts_from(rows, "answer", columns=["prompts"])


def test_texts_of_tokenized_prompts_may_have_either_name():
    for name in ("prompt", "prompts"):
        table = to_table({"token_ids": [[1], [2]], name: PAIR})
        assert table.prompts == PAIR and table.columns == {}


def test_column_names_are_strings():
    with pytest.raises(TypeError, match="Columns must have .*Received"):
        to_table({"prompts": PAIR, 1: PAIR})


def test_preference_pairs_have_one_column_of_prompts():
    pairs = {"chosen": PAIR, "rejected": PAIR}
    for name in ("prompt", "prompts"):
        assert data.to_pairs({**pairs, name: PAIR})["prompts"] == PAIR
    with pytest.raises(ValueError, match="one column of prompts"):
        data.to_pairs({**pairs, "prompt": PAIR, "prompts": PAIR})


@dataclasses.dataclass
class Entry:
    notes: list


def spoil(prompts, completions, completion_ids=None, **columns):
    """Returns what it was given as text, and then changes all of it."""
    given = {"prompts": prompts, "completions": completions, **columns}
    given.pop("log_metric"), given.pop("log_extra")
    seen.append(repr({**given, "ids": completion_ids}))
    for column in (*given.values(), completion_ids):
        for value in column:
            change(value)
        column.append("more")
    return [0.0] * len(completions[:4])


def change(value):
    if isinstance(value, (list, tuple)):
        for entry in value:
            change(entry)
    if isinstance(value, list):
        value.append("changed")
    elif isinstance(value, dict):
        for entry in value.values():
            change(entry)
        value["changed"] = 1
    elif isinstance(value, set):
        value.add("changed")
    elif isinstance(value, np.ndarray):
        value[...] = -1
    elif isinstance(value, Entry):
        change(value.notes)


seen = []


def test_every_call_has_copies_of_its_own():
    """Pins: rewards shared lists with each other, epochs and the user."""
    user = {
        "prompts": TURNS,
        "list": [[1, [2]], [3, []]],
        "dict": [{"a": [1]}, {"a": [2]}],
        "array": [np.zeros(2), np.ones(2)],
        "set": [{1}, {2}],
        "object": [Entry([1]), Entry([2])],
        "tuple": [([1],), ([2],)],
    }
    before = repr(user)
    table = to_table(user).repeat(2)
    part = dataclasses.replace(
        samples(list("abcd"), 2),
        prompts=table.prompts,
        columns=table.columns,
        conversations=table.conversations,
        completion_ids=[[1], [1], [2], [2]],
    )
    reader = Spoiling()
    seen.clear()
    both = rewards.get([spoil, spoil, rewards.Cached(spoil), reader, spoil])
    for _ in range(2):
        both(part)
    rewards.ConcurrentReward(spoil, batch_size=2)(part)
    assert repr(user) == before
    # `Cached` answers the second time; the copies of a prompt are one text.
    assert len(seen) == 8 and len(set(seen)) == 1
    assert repr(part.completion_ids) == "[[1], [1], [2], [2]]"
    np.testing.assert_array_equal(
        part.token_ids, samples(list("abcd")).token_ids
    )


class Spoiling(rewards.Reward):
    """Changes the samples themselves."""

    def score(self, samples):
        samples.token_ids[...] = 0
        samples.padding_mask[...] = False
        samples.columns["new"] = samples.columns.pop("list")
        change([samples.completion_ids, samples.conversations])
        return np.zeros(len(samples))


def test_the_samples_of_a_prompt_do_not_share_a_list():
    shared = [1]
    part = samples(list("ab"), columns={"notes": [shared, shared]})

    def append(prompts, completions, notes):
        notes[0].append(2)
        return [float(len(note)) for note in notes]

    assert rewards.get(append)(part).tolist() == [2, 1] and shared == [1]


def test_entries_that_cannot_be_copied_are_shared():
    lock = threading.Lock()

    def judge(prompts, completions, locks):
        return [float(entry is lock) for entry in locks]

    part = samples(list("ab"), columns={"locks": [lock, lock]})
    assert rewards.get(judge)(part).tolist() == [1, 1]


def logs(prompts, completions, log_metric, log_extra):
    log_metric("length", np.float32(np.mean([len(c) for c in completions])))
    log_extra("upper", [c.upper() for c in completions])
    return [float(len(c)) for c in completions]


def test_rewards_log_metrics_and_columns():
    part = samples(["a", "bb", "ccc", "d"], num_samples=2)
    rewards.get([logs, logs])(part)
    assert part.log.metrics["length"] == [1.75, 1.75]
    assert part.log.columns == {"upper": ["A", "BB", "CCC", "D"]}


def test_logged_columns_find_their_completions():
    """Through caches and threads, where a call sees only some of them."""
    part = samples(["a", "bb", "ccc", "d"], num_samples=2)
    cached = rewards.Cached(logs)
    cached(samples(["bb"]))
    cached(part)
    assert part.log.columns == {"upper": ["A", None, "CCC", "D"]}
    part = samples(["a", "bb", "ccc", "d"], num_samples=2)
    rewards.ConcurrentReward(logs)(part)
    assert part.log.columns == {"upper": ["A", "BB", "CCC", "D"]}
    assert sorted(part.log.metrics["length"]) == [1.5, 2.0]


def test_failed_attempts_log_nothing():
    calls = []

    def judge(prompts, completions, log_metric):
        log_metric("tries", len(calls))
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("busy")
        return [0.0] * len(completions)

    part = samples(["a", "b"])
    rewards.ConcurrentReward(judge, retries=1, retry_delay=0.0)(part)
    assert part.log.metrics == {"tries": [1.0]}


@pytest.mark.parametrize(
    "log, text",
    [
        (lambda m, e: m("x", "1"), "`log_metric` of the reward `judge`"),
        (lambda m, e: m("x", None), "`log_metric` of the reward `judge`"),
        (lambda m, e: m("x", [1, 2]), "`log_metric` of the reward `judge`"),
        (lambda m, e: m(1, 1.0), "name that is a string"),
        (lambda m, e: m("", 1.0), "name that is a string"),
        (lambda m, e: e("x", ["one"]), "1 values for 2 completions"),
        (lambda m, e: e("x", "ab"), "list with one entry"),
        (lambda m, e: e("x", 1.0), "list with one entry"),
        (lambda m, e: e(None, PAIR), "name that is a string"),
    ],
)
def test_what_cannot_be_logged_is_named(log, text):
    def judge(prompts, completions, log_metric, log_extra):
        log(log_metric, log_extra)
        return [0.0, 0.0]

    with pytest.raises((TypeError, ValueError), match=text):
        rewards.get(judge)(samples(PAIR))


def test_the_state_of_a_trainer_is_not_passed():
    """Said when the reward is given, not in the first step."""

    def judge(prompts, completions, trainer_state, **kwargs):
        return [trainer_state.global_step] * len(completions)

    with pytest.raises(ValueError, match="`judge` must not need `trainer_st"):
        rewards.get(judge)

    def other(completions, trainer_state=None, **kwargs):
        return [float("trainer_state" in kwargs or trainer_state is not None)]

    assert rewards.get(other)(samples(["a"])).tolist() == [0.0]


def test_functions_without_a_signature_are_named():
    with pytest.raises(ValueError, match="`min` must be a function whose"):
        rewards.get(min)
