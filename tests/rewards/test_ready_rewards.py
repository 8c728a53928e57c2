"""Ready rewards: rules, classifiers and ranks."""

import dataclasses
import decimal
import json

import keras
import numpy as np
import pytest

import keras_bond
from keras_bond import rewards
from tests.rewards.samples import samples
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import chat_vocabulary
from tests.tiny import length_reward
from tests.tiny import make_policy

pytestmark = pytest.mark.one_backend

keras.saving.register_keras_serializable(package="tests")(length_reward)


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


def test_numbers_are_compared_as_numbers():
    """Pins: a pattern on the text of a number, which read 1e16 as 16."""
    reward = rewards.NumberAnswer()
    for answer, right in (
        (1e16, "10000000000000000"),
        (1e-05, "0.00001"),
        (np.float32(0.1), "0.1"),
        (np.array([0.1], "float32").tolist()[0], "0.1"),
        (-1234.5678, "-1234.5678"),
        (float(np.float32(-1234.5678)), "-1234.5677"),
        (123456792.0, "123,456,792"),
        (np.int64(7), "7"),
        (decimal.Decimal("1E+3"), "1,000"),
        (10**5000, "1" + "0" * 5000),
        ("1e3", "1000"),
        ("2.5e-3", "0.0025"),
        (1000, "#### 1e3"),
        ("-1.5E+2", "$-150"),
    ):
        texts = [right, "16", "05", "3", f"1e{'9' * 30}"]
        assert ask(reward, *texts, answer=answer) == [1, 0, 0, 0, 0], answer
    for answer in (float("nan"), float("inf"), True):
        assert ask(reward, "1", answer=answer) == [None]


MISSING = [None, float("nan"), np.float32("nan"), np.ma.masked]


def test_missing_answers_are_unscored():
    """Pins: None was the answer "None", and a slot of that name."""
    pandas = pytest.importorskip("pandas")
    for entry in (*MISSING, pandas.NA, pandas.NaT):
        for reward in (
            rewards.ExactAnswer(),
            rewards.RegexAnswer(r"\w+"),
            rewards.NumberAnswer(),
            rewards.SlotCoverage("answer"),
        ):
            got = ask(reward, "None", "nan", "0", "--", answer=entry)
            assert got == [None] * 4, (entry, reward)
    assert ask(rewards.ExactAnswer(), "1", answer=10**5000) == [0]
    slots = rewards.SlotCoverage()
    assert ask(slots, "easy", "a", slots="easy") == [1, 0]
    assert ask(slots, "easy", slots=[None, "", "easy", float("nan")]) == [1]
    for nothing in ([None], [""], "", {"level": None}, []):
        assert ask(slots, "None", slots=nothing) == [None]
    assert ask(slots, "5 km", slots=5) == [1]


def test_columns_of_any_name_and_of_the_right_length():
    reward = rewards.get(rewards.ExactAnswer())
    part = samples(["a", "b"], columns={"self": [1, 2], "answer": ["a", "a"]})
    assert reward(part).tolist() == [1, 0]
    with pytest.raises(ValueError, match="one entry of the column `answer`"):
        rewards.ExactAnswer()(["q"] * 2, ["a", "b"], answer=["a"])


def test_arguments_by_place_are_refused_early():
    with pytest.raises(ValueError, match=r"leave out the `/`.*, /\)"):
        rewards.get(eval("lambda prompts, completions, /: [0.0]"))


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


def test_lengths_in_tokens():
    """Tokens that were drawn, of which the text need not tell."""
    reward = rewards.Length(2, 3, unit="tokens")
    ids = [[], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4, 5]]
    texts = ["a b c"] * 5
    assert reward(["q"] * 5, texts, completion_ids=ids) == [-2, -1, 0, 0, -2]
    drawn = samples(texts)
    with pytest.raises(ValueError, match="ids of each completion.*=None"):
        rewards.get(reward)(drawn)
    drawn = dataclasses.replace(drawn, completion_ids=ids)
    assert rewards.get(reward)(drawn).tolist() == [-2, -1, 0, 0, -2]
    with pytest.raises(ValueError, match="`Length` in tokens must be given"):
        reward(["q"], ["a"], completion_ids=[])


def test_overlong_penalties_are_those_of_dapo():
    """Equation 13: (L_max - L_cache - |y|) / L_cache within the buffer."""
    reward = rewards.OverlongPenalty(10, buffer=4)
    lengths = range(13)
    expected = [
        0 if y <= 6 else (6 - y) / 4 if y <= 10 else -1 for y in lengths
    ]
    assert expected[6:12] == [0, -0.25, -0.5, -0.75, -1, -1]
    ids = [[0] * y for y in lengths]
    assert reward(["q"] * 13, [""] * 13, completion_ids=ids) == expected
    in_words = rewards.OverlongPenalty(2, 2, unit="words")
    assert ask(in_words, "", "a", "a b", "a b c") == [0, -0.5, -1, -1]


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


def test_all_come_back_from_their_configs():
    ready = [
        rewards.ExactAnswer("gold", ignore_case=True),
        rewards.RegexAnswer("(a)", column="gold"),
        rewards.NumberAnswer("gold"),
        rewards.SlotCoverage("facts", ignore_case=False),
        rewards.Length(1, 5, "characters"),
        rewards.OverlongPenalty(9, 3, "words"),
        rewards.Repetition(2),
        rewards.Classifier(length_reward, "good", with_prompt=True),
        rewards.RankFusion([length_reward, rewards.Length(1)], [2.0, 1.0]),
        rewards.UnfinishedLast(length_reward),
        rewards.Cached(rewards.Length(1)),
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
    assert set(kwargs) == {"bonus", "log_metric", "log_extra"}
    contents = [completion[0]["content"] for completion in completions]
    kwargs["log_metric"]("length", np.mean([len(c) for c in contents]))
    kwargs["log_extra"]("golden_answer", kwargs["bonus"])
    return [float(len(c) + n) for c, n in zip(contents, kwargs["bonus"])]


def test_trl_rewards_of_conversations_are_used_unchanged():
    """And ready rewards take both, strings and turns.

    What they log is a mean over the steps of an epoch, and an epoch, a
    validation and an evaluation each have their own.
    """
    turns = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    seen, means = [], []

    def watch(prompts, completions, log_metric, **columns):
        seen.append(completions)
        assert {len(turn) for turn in completions} == {1}
        assert completions[0][0]["role"] == "assistant"
        texts = [completion[0]["content"] for completion in completions]
        means.append(np.mean([len(text) for text in texts]))
        if len(means) % 3 == 2:
            log_metric("call", len(means))
        return rewards.Length(1, 2)(prompts, completions, **columns)

    bond = keras_bond.JBond(
        make_policy(scale=2.0, proto=chat_vocabulary()),
        [trl_length, watch],
        max_prompt_length=99,
        max_completion_length=5,
        seed=1,
    )
    bond.compile("sgd", **COMPILED_QUICKLY)
    data = {"prompt": turns, "bonus": list(range(8))}
    few = {name: column[:4] for name, column in data.items()}
    history = bond.fit(
        data, batch_size=4, epochs=2, validation_data=few, verbose=0
    ).history
    assert len(seen) == 6 and len(seen[0]) == 12
    expected = [np.mean(means[:2]), np.mean(means[3:5])]
    np.testing.assert_allclose(history["rewards/length"], expected)
    np.testing.assert_allclose(
        history["val_rewards/length"], [means[2], means[5]]
    )
    # Logged in one of two steps only, and never in validation.
    assert history["rewards/call"] == [2, 5]
    assert "val_rewards/call" not in history
    logs = bond.evaluate(few, return_dict=True, verbose=0)
    assert logs["rewards/length"] == pytest.approx(means[6])
    # Draws outside of `fit` and `evaluate` are not among the logged numbers.
    drawn, scores = bond.draw_scored(few)
    assert scores.dtype == "float64"
    assert drawn.log.columns == {"golden_answer": few["bonus"]}
    assert bond.host_logs()["rewards/length"] == pytest.approx(means[6])


def test_rewards_of_trl_itself():
    trl = pytest.importorskip("trl.rewards")
    think = rewards.get(trl.think_format_reward)
    turns = [[{"role": "user", "content": "p"}]] * 2
    part = samples(["<think>a</think>b", "b"], conversations=turns)
    assert think(part).tolist() == [1, 0]


def test_a_missing_column_of_a_ready_reward_is_named():
    with pytest.raises(ValueError, match="reads the column `answer`"):
        rewards.get(rewards.NumberAnswer())(samples(["1"]))


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: rewards.RegexAnswer("("), "`pattern` must be"),
        (lambda: rewards.Length(3, 2), "`minimum` must be at least 0"),
        (lambda: rewards.Length(unit="lines"), "`unit` must be"),
        (lambda: rewards.OverlongPenalty(0, 1), "`maximum` must be"),
        (lambda: rewards.OverlongPenalty(2, 0), "`buffer` must be"),
        (lambda: rewards.OverlongPenalty(2, 3), "`buffer` must not be above"),
        (lambda: rewards.OverlongPenalty(2, 1, "line"), "`unit` must be"),
        (lambda: rewards.Repetition(0), "`n` must be an integer"),
        (lambda: rewards.RankFusion([]), "at least one reward"),
        (lambda: rewards.RankFusion([length_reward], [0.0]), "`weights` must"),
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
