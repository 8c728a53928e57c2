"""What may be a reward, and what it may answer."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bond import rewards


def samples(columns=None, num_samples=2):
    ids = np.arange(24, dtype="int32").reshape(4, 6)
    return rewards.Samples(
        prompts=["p", "p", "q", "q"],
        completions=["a", "bb", "ccc", ""],
        columns=columns or {},
        token_ids=ids,
        padding_mask=ids % 6 < 4,
        num_samples=num_samples,
    )


def lengths(prompts, completions):
    return [len(completion) for completion in completions]


def trl_style(prompts, completions, **kwargs):
    return [float(a == c) for a, c in zip(kwargs["answer"], completions)]


def named(completions, answer):
    return np.array([a == c for a, c in zip(answer, completions)])


ANSWERS = {"answer": ["a", "b", "c", ""], "unused": [0, 0, 0, 0]}


def test_functions_get_what_they_name():
    """A TRL reward works unchanged; one without **columns gets no others."""
    np.testing.assert_array_equal(
        rewards.get(lengths)(samples(ANSWERS)), [1, 2, 3, 0]
    )
    for function in (trl_style, named):
        scores = rewards.get(function)(samples(ANSWERS))
        np.testing.assert_array_equal(scores, [1, 0, 0, 1])


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="asks for `answer`"):
        rewards.get(named)(samples())


def test_answers_may_be_tensors_and_none():
    tensor = rewards.get(lambda prompts, completions: ops.ones((4,)))
    np.testing.assert_array_equal(tensor(samples()), [1, 1, 1, 1])
    partly = rewards.get(lambda prompts, completions: [1.0, None, 2, True])
    np.testing.assert_array_equal(partly(samples()), [1, np.nan, 2, 1])


@keras.saving.register_keras_serializable(package="tests")
class CountTokens(keras.layers.Layer):
    def call(self, inputs):
        mask = ops.cast(inputs["padding_mask"], "float32")
        return ops.sum(mask, axis=1, keepdims=True) + ops.cast(
            inputs["token_ids"][:, :1], "float32"
        )


def test_a_layer_scores_tokens_on_the_device():
    scores = rewards.get(CountTokens())(samples())
    np.testing.assert_array_equal(scores, [4, 10, 16, 22])


def test_rewards_add_up_with_weights():
    both = rewards.get([lengths, CountTokens()], reward_weights=[1.0, 0.5])
    np.testing.assert_array_equal(both(samples()), [3, 7, 11, 11])
    assert both.needs_text


def test_a_silent_reward_does_not_count_and_a_partial_one_drops_the_prompt():
    """As in TRL for the first; the second would compare unlike sums."""
    silent = lambda prompts, completions: [None, None, 1.0, 1.0]  # noqa: E731
    scores = rewards.get([lengths, silent])(samples())
    np.testing.assert_array_equal(scores, [1, 2, 4, 1])
    partial = lambda prompts, completions: [None, 1.0, 1.0, 1.0]  # noqa: E731
    scores = rewards.get([lengths, partial])(samples())
    assert np.isnan(scores[:2]).any() and scores[2:].tolist() == [4, 1]


@pytest.mark.parametrize(
    "reward, weights, error, text",
    [
        ("good", None, TypeError, "`reward` must be a function"),
        (lengths, [1.0], ValueError, "goes with a list"),
        ([lengths], [1.0, 2.0], ValueError, "one weight for each"),
        ([], None, ValueError, "at least one reward"),
    ],
)
def test_what_is_no_reward_is_refused(reward, weights, error, text):
    with pytest.raises(error, match=text):
        rewards.get(reward, weights)


def test_the_mean_of_each_reward_of_a_list_is_logged():
    def length(prompts, completions):
        return [len(text) for text in completions]

    def some(prompts, completions):
        return [None, None, 4.0, 1.0]

    def none(prompts, completions):
        return [None] * 4

    parts = [length, some, none, length]
    expected = {
        "length/mean": [1.5],
        "some/mean": [2.5],
        "none/mean": [np.nan],
        "length_2/mean": [1.5],
    }
    for reward in (rewards.get(parts, [9.0] * 4), rewards.RankFusion(parts)):
        scored = samples()
        reward(scored)
        np.testing.assert_equal(scored.log.metrics, expected)
