"""Ready rewards: rules, classifiers, ranks, and scores that are kept."""

import json
import math

import keras
import numpy as np
import pytest

import keras_bond
from keras_bond import rewards
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

keras.saving.register_keras_serializable(package="tests")(length_reward)


def samples(completions, num_samples=None, columns=None, terminated=None):
    """One prompt, or several with `num_samples` each."""
    count = len(completions)
    num_samples = num_samples or count
    width = max(map(len, completions))
    ids = np.array(
        [[ord(c) for c in text.ljust(width)] for text in completions]
    )
    return rewards.Samples(
        prompts=[f"p{i // num_samples}" for i in range(count)],
        completions=completions,
        columns=columns or {},
        token_ids=ids.astype("int32"),
        padding_mask=np.arange(width) < [[len(t)] for t in completions],
        num_samples=num_samples,
        terminated=None if terminated is None else np.array(terminated),
    )


def ask(reward, *completions, **entries):
    columns = {k: [v] * len(completions) for k, v in entries.items()}
    return reward(["q"] * len(completions), list(completions), **columns)


def test_exact_answers():
    reward = rewards.ExactAnswer()
    assert ask(reward, " 42\n", "42.", "", answer="42") == [1, 0, 0]
    reward = rewards.ExactAnswer(column="gold", ignore_case=True)
    assert ask(reward, "PARIS", "Rome", gold="Paris") == [1, 0]


def test_numbers_as_in_gsm8k():
    """Mark before last number, commas, dollars, decimals, no number at all."""
    reward = rewards.NumberAnswer()
    right = [
        "#### 1,234",
        "so $1234.",
        "1234.00",
        "#### 1234\nthen 5",
        "= 1234",
    ]
    wrong = ["#### 1,23", "1234 then 5", "none", "-1234", "#### none 12345"]
    gold = "He has <<1000+234=1234>>1,234 left.\n#### 1,234"
    assert ask(reward, *right, answer=gold) == [1] * 5
    assert ask(reward, *wrong, answer=gold) == [0] * 5
    assert ask(reward, "1234", answer=1234) == [1]
    assert ask(reward, "1234", answer="no number") == [None]
    assert ask(reward, ".5", "0.50", "5", answer="0.5") == [1, 1, 0]


def test_patterns_find_the_last_answer_in_both():
    boxed = rewards.RegexAnswer(r"\\boxed\{([^}]*)\}")
    texts = [r"\boxed{3} no \boxed{ 4 }", r"\boxed{3}", "4", ""]
    assert ask(boxed, *texts, answer="4") == [1, 0, 0, 0]
    assert ask(boxed, *texts, answer=r"so \boxed{4}") == [1, 0, 0, 0]
    letter = rewards.RegexAnswer(r"\b[A-D]\b", column="key")
    assert ask(letter, "A or B", "A", key="B") == [1, 0]


def test_slots_are_words_of_their_own():
    reward = rewards.SlotCoverage()
    texts = ["7 km and Easy", "17 km, uneasy", ""]
    assert ask(reward, *texts, slots=["easy", "7 km"]) == [1, 0, 0]
    assert ask(reward, texts[0], slots={"level": "easy", "view": "lake"}) == [
        0.5
    ]
    assert ask(reward, "x", slots=[]) == [None]
    strict = rewards.SlotCoverage(column="facts", ignore_case=False)
    assert ask(strict, texts[0], facts=["easy", "7 km"]) == [0.5]


def test_lengths_count_outside_their_bounds_only():
    reward = rewards.Length(2, 3)
    assert ask(reward, "", "a", "a b", "a b c", "a b c d e") == [
        -2,
        -1,
        0,
        0,
        -2,
    ]
    reward = rewards.Length(maximum=3, unit="characters")
    assert ask(reward, "abc", "abcde") == [0, -2]
    assert ask(rewards.Length(1), "a " * 50) == [0]


def test_repeated_n_grams_cost_their_share():
    texts = ["a b c d", "a b a b a b", "a", "a a a a"]
    expected = [0, 2 / 5 - 1, 0, 1 / 3 - 1]
    got = ask(rewards.Repetition(n=2), *texts)
    assert got == pytest.approx(expected)
    assert ask(rewards.Repetition(n=1), texts[3]) == [-0.75]


def test_classifiers_of_every_kind_answer():
    texts = ["good", "bad", "good good"]
    counts = [[t.count("bad"), t.count("good")] for t in texts]
    labels = [dict(zip(("bad", "good"), row)) for row in counts]
    pipeline = [
        [{"label": k, "score": v} for k, v in row.items()] for row in labels
    ]
    best = [{"label": "good", "score": row["good"]} for row in labels]
    cases = [
        (np.array(counts), 1),
        (keras.ops.convert_to_tensor(counts), 1),
        (labels, "good"),
        (pipeline, "good"),
        (best, "good"),
        ([1, 0, 2], None),
        (np.array([[1.0], [0.0], [2.0]]), None),
    ]
    for answer, label in cases:
        reward = rewards.Classifier(lambda texts, a=answer: a, label)
        assert ask(reward, *texts) == [1, 0, 2]
    both = rewards.Classifier(lambda texts: map(len, texts), with_prompt=True)
    assert ask(both, "a", "") == [2, 1]


def test_classifiers_without_the_label_are_named():
    with pytest.raises(ValueError, match="`label` must be among"):
        ask(rewards.Classifier(lambda x: [{"a": 1}], "b"), "x")
    with pytest.raises(TypeError, match="`classify` must return a number"):
        ask(rewards.Classifier(lambda x: ["good"]), "x")


def scores_of(*scores):
    """A reward that always says the same."""
    return lambda prompts, completions: list(scores)


def test_fused_ranks_do_not_depend_on_scales():
    one, other = [1.0, 2.0, 3.0], [900.0, 900.0, -4e6]
    fused = rewards.RankFusion([scores_of(*one), scores_of(*other)])
    got = fused(samples(["a", "b", "c"]))
    np.testing.assert_allclose(got, [(0 + 0.75) / 2, (0.5 + 0.75) / 2, 0.5])
    weighted = rewards.RankFusion([scores_of(*one), scores_of(*other)], [3, 1])
    got = weighted(samples(["a", "b", "c"]))
    np.testing.assert_allclose(got, [0.1875, 0.5625, 0.75])


def test_ranks_are_those_within_a_prompt_and_silence_does_not_count():
    silent = scores_of(None, None, 5.0, 4.0, None, 1.0)
    fused = rewards.RankFusion([length_reward, silent])
    got = fused(samples(["a", "bb", "c", "dd", "e", "ff"], num_samples=2))
    np.testing.assert_array_equal(got, [0, 1, 0.5, 0.5, np.nan, np.nan])
    nothing = rewards.RankFusion([scores_of(None, None)])
    assert np.isnan(nothing(samples(["a", "b"]))).all()
    alone = rewards.RankFusion([length_reward])(samples(["a", "b"], 1))
    assert alone.tolist() == [0, 0]


def test_unfinished_completions_rank_last():
    """Their order stays, finished scores stay, nothing is taken in vain."""
    ended = [True, False, True, False]

    def score(*values):
        part = samples(list("abcd"), terminated=ended)
        return rewards.UnfinishedLast(scores_of(*values))(part)

    got = score(1.0, 5.0, 2.0, 7.0)
    assert got[[0, 2]].tolist() == [1, 2] and got[1] < got[3] < 1
    assert got[3] - got[1] == pytest.approx(2.0)
    assert score(1, 0, 2, 0.5).tolist() == [1, 0, 2, 0.5]
    big = score(1e9, 1e9, 2e9, 1e9)
    assert big[1] == big[3] < big[0]
    for all_alike in ([True] * 2, [False] * 2):
        part = samples(["a", "b"], terminated=all_alike)
        reward = rewards.UnfinishedLast(scores_of(3, 4))
        assert reward(part).tolist() == [3, 4]
    with pytest.raises(ValueError, match="which completions have ended"):
        rewards.UnfinishedLast(length_reward)(samples(["a"]))


class Counting:
    def __init__(self):
        self.asked = []

    def __call__(self, prompts, completions, **columns):
        self.asked.append(list(zip(prompts, completions)))
        return [None if c == "?" else float(len(c)) for c in completions]


def test_a_cache_asks_for_each_completion_once():
    judge = Counting()
    cached = rewards.Cached(judge)
    texts = ["a", "bb", "a", "bb", "a", "ccc"]
    expected = [1, 2, 1, 2, 1, 3]
    assert cached(samples(texts, num_samples=3)).tolist() == expected
    assert sorted(judge.asked[0]) == [
        ("p0", "a"),
        ("p0", "bb"),
        ("p1", "a"),
        ("p1", "bb"),
        ("p1", "ccc"),
    ]
    assert cached(samples(texts, num_samples=3)).tolist() == expected
    assert len(judge.asked) == 1
    assert (cached.misses, cached.hits) == (5, 7)
    columns = {"answer": list("xyzxyz")}
    cached(samples(texts, 3, columns))
    assert len(judge.asked) == 2


def test_a_cache_forgets_what_is_old_and_what_failed():
    judge = Counting()
    cached = rewards.Cached(judge, max_size=2)
    for texts in (["a"], ["b"], ["c"], ["c"], ["a"], ["?"], ["?"]):
        cached(samples(texts))
    asked = [text for batch in judge.asked for _, text in batch]
    assert asked == ["a", "b", "c", "a", "?", "?"]


@pytest.mark.parametrize(
    "reward",
    [
        lambda: rewards.RankFusion([length_reward]),
        lambda: [length_reward, length_reward],
        lambda: rewards.UnfinishedLast(length_reward),
        lambda: rewards.ConcurrentReward(rewards.RankFusion([length_reward])),
    ],
)
def test_a_cache_refuses_what_compares(reward):
    with pytest.raises(ValueError, match="must score each completion by"):
        rewards.Cached(reward())


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
    """With a judge that says something else each time it is asked."""
    generator = np.random.default_rng(0)

    def judge(prompts, completions):
        return generator.normal(size=len(prompts)).tolist()

    path = tmp_path / "scores.jsonl"
    bond = make_bond(rewards.Recorded(judge, path))
    logs = bond.fit(PROMPTS, batch_size=4, epochs=2, verbose=0).history
    again = make_bond(rewards.Replayed(path))
    assert again.fit(PROMPTS, batch_size=4, epochs=2, verbose=0).history == logs
    for a, b in zip(values_of(bond.variables), values_of(again.variables)):
        np.testing.assert_array_equal(a, b)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 2 * len(PROMPTS) * 3
    assert {row["prompt"] for row in rows} == set(PROMPTS)
    with pytest.raises(ValueError, match="must hold every completion"):
        again.fit(["fox fox", "lazy fox"], verbose=0)


def test_a_file_that_was_cut_is_read_and_continued(tmp_path):
    path = tmp_path / "scores.jsonl"
    part = samples(["a", "bb", "ccc"])
    rewards.Recorded(length_reward, path)(part)
    path.write_bytes(path.read_bytes()[:-20])
    replayed = rewards.Replayed(path)
    assert replayed(samples(["a", "bb"])).tolist() == [1, 2]
    with pytest.raises(ValueError, match="completion='ccc'"):
        replayed(part)
    rewards.Recorded(length_reward, path)(part)
    assert len(path.read_text().splitlines()) == 5
    assert rewards.Replayed(path)(part).tolist() == [1, 2, 3]


def test_answers_come_again_in_their_order(tmp_path):
    """A judge that changes its mind, within a batch and between batches."""
    path = tmp_path / "scores.jsonl"
    answers = iter(range(6))
    judge = rewards.Recorded(
        lambda prompts, completions: [float(next(answers)) for _ in prompts],
        path,
    )
    parts = [samples(["a", "b", "a"]), samples(["b", "a", "a"])]
    given = [judge(part).tolist() for part in parts]
    replayed = rewards.Replayed(path)
    assert given == [[0, 1, 2], [3, 4, 5]]
    assert [replayed(part).tolist() for part in parts] == given
    assert replayed(parts[0]).tolist() == [5, 3, 5]


def test_scores_that_were_not_given_are_replayed_too(tmp_path):
    path = tmp_path / "scores.jsonl"
    part = samples(["?", "a"])
    scores = rewards.Recorded(Counting(), path)(part)
    np.testing.assert_array_equal(scores, [np.nan, 1])
    np.testing.assert_array_equal(rewards.Replayed(path)(part), scores)
    assert math.isnan(scores[0])


def test_all_come_back_from_their_configs(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text("")
    ready = [
        rewards.ExactAnswer("gold", ignore_case=True),
        rewards.RegexAnswer("(a)", column="gold"),
        rewards.NumberAnswer("gold"),
        rewards.SlotCoverage("facts", ignore_case=False),
        rewards.Length(1, 5, "characters"),
        rewards.Repetition(2),
        rewards.Classifier(length_reward, "good", with_prompt=True),
        rewards.RankFusion([length_reward, rewards.Length(1)], [2.0, 1.0]),
        rewards.UnfinishedLast(length_reward),
        rewards.Cached(rewards.Length(1), max_size=7),
        rewards.Recorded(length_reward, path),
        rewards.Replayed(path),
    ]
    for reward in ready:
        config = json.loads(
            json.dumps(keras.saving.serialize_keras_object(reward))
        )
        loaded = keras.saving.deserialize_keras_object(config)
        assert type(loaded) is type(reward)
        assert loaded.get_config() == reward.get_config()


def trl_length(prompts, completions, completion_ids, **kwargs):
    """As people write them for TRL, for conversations."""
    assert all(turns[-1]["role"] == "user" for turns in prompts)
    assert all(len(ids) > 0 for ids in completion_ids)
    assert "prompt_turns" not in kwargs
    contents = [completion[0]["content"] for completion in completions]
    return [float(len(c) + n) for c, n in zip(contents, kwargs["bonus"])]


def test_trl_rewards_of_conversations_are_used_unchanged():
    """And ready rewards take both, strings and turns."""
    turns = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    seen = []

    def watch(prompts, completions, **columns):
        seen.append(completions)
        assert {len(turn) for turn in completions} == {1}
        assert completions[0][0]["role"] == "assistant"
        return rewards.Length(1, 2)(prompts, completions, **columns)

    bond = keras_bond.JBond(
        make_policy(scale=2.0),
        [trl_length, watch],
        max_prompt_length=99,
        max_completion_length=5,
        seed=1,
    )
    bond.compile("sgd", **COMPILED_QUICKLY)
    bond.fit(
        {"prompt": turns, "bonus": list(range(8))}, batch_size=8, verbose=0
    )
    assert len(seen) == 1 and len(seen[0]) == 24


def test_rewards_of_trl_itself():
    trl = pytest.importorskip("trl.rewards")
    think = rewards.get(trl.think_format_reward)
    part = samples(["<think>a</think>b", "b"])
    part.columns["prompt_turns"] = [[{"role": "user", "content": "p"}]] * 2
    assert think(part).tolist() == [1, 0]


def test_a_missing_column_of_a_ready_reward_is_named():
    with pytest.raises(ValueError, match="reads the column `answer`"):
        rewards.get(rewards.NumberAnswer())(samples(["1"]))


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: rewards.RegexAnswer("("), "`pattern` must be"),
        (lambda: rewards.Length(3, 2), "`minimum` must be at least 0"),
        (lambda: rewards.Length(unit="tokens"), "`unit` must be"),
        (lambda: rewards.Repetition(0), "`n` must be an integer"),
        (lambda: rewards.RankFusion([]), "at least one reward"),
        (lambda: rewards.RankFusion([length_reward], [0.0]), "`weights` must"),
        (lambda: rewards.Cached(length_reward, 0), "`max_size` must be"),
    ],
)
def test_wrong_arguments_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_an_unwritten_rule_is_named():
    class Unwritten(rewards.TextReward):
        pass

    with pytest.raises(TypeError, match="must have a method `score`"):
        ask(Unwritten(), "a")
