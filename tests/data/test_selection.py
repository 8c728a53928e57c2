"""Prompts whose samples all have one reward are left out."""

import json

import numpy as np
import pytest

import keras_bond
from keras_bond.data import informative
from keras_bond.data.prompts import read_finite
from keras_bond.rewards import Samples
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

pytestmark = pytest.mark.one_backend

NAN = np.nan
# By prompt: always wrong, always right, mixed, one scored, none, one missing.
REWARDS = np.array(
    [
        [0, 0, 0],
        [1, 1, 1],
        [0, 1, 0],
        [NAN, 1, NAN],
        [NAN, NAN, NAN],
        [1, NAN, 0],
    ],
    "float64",
)
TEXTS = [f"prompt {i}" for i in range(6)]
COLUMNS = {"prompts": TEXTS, "answer": list(range(6))}
LEFT = [2, 5]


class Drawing:
    """A trainer whose samples have the given rewards."""

    rewards = REWARDS

    def draw_scored(self, prompts, num_samples, batch_size=None, seed=None):
        table = read_finite(prompts).repeat(num_samples)
        count = len(table)
        samples = Samples(
            prompts=table.prompts,
            completions=[f"{i % num_samples}" for i in range(count)],
            columns=table.columns,
            token_ids=np.zeros((count, 1), "int32"),
            padding_mask=np.ones((count, 1), bool),
            num_samples=num_samples,
        )
        return samples, self.rewards[:, :num_samples]


def kept(prompts, **arguments):
    return informative(Drawing(), prompts, num_samples=3, **arguments)


def batches():
    """An iterable of two batches, which can be iterated again."""

    class Batches:
        def __iter__(self):
            for part in (slice(0, 4), slice(4, 6)):
                yield {name: c[part] for name, c in COLUMNS.items()}

    return Batches()


@pytest.mark.parametrize(
    "make",
    [
        lambda: COLUMNS,
        lambda: {"prompt": TEXTS, "answer": np.arange(6)},
        lambda: [{"prompts": t, "answer": i} for i, t in enumerate(TEXTS)],
        lambda: pytest.importorskip("pandas").DataFrame(COLUMNS),
        batches,
    ],
    ids=["columns", "arrays", "rows", "frame", "batches"],
)
def test_all_columns_are_kept(make):
    assert kept(make(), verbose=0) == {
        "prompts": [TEXTS[i] for i in LEFT],
        "answer": LEFT,
    }


def test_other_prompts(tmp_path):
    assert kept(TEXTS) == {"prompts": [TEXTS[i] for i in LEFT]}
    assert kept(np.array(TEXTS)) == kept(TEXTS)
    ids = np.arange(12).reshape(6, 2)
    tokenized = {"token_ids": ids, "padding_mask": np.ones((6, 2), bool)}
    assert kept(tokenized) == {"token_ids": [[4, 5], [10, 11]]}
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    assert kept(chats) == {"prompts": [chats[i] for i in LEFT]}
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in TEXTS))
    assert kept(path) == kept(TEXTS)


def test_it_says_what_was_left_out(capsys):
    kept(TEXTS)
    assert capsys.readouterr().out == (
        "2 of 6 prompts are kept, 2 left out because all of their 3 samples "
        "have one reward (1 with 0, 1 with 1), 2 because fewer than 2 of them "
        "have a score\n"
    )
    kept(TEXTS, verbose=0)
    assert capsys.readouterr().out == ""


def test_another_reward_decides():
    """It reads columns; that of the trainer does not count."""

    def is_even(prompts, completions, answer):
        return [float(a == 4 and c == "0") for c, a in zip(completions, answer)]

    chosen = kept(COLUMNS, reward=is_even)
    assert chosen == {"prompts": ["prompt 4"], "answer": [4]}


def test_errors():
    with pytest.raises(ValueError, match="`num_samples` must be an integer"):
        informative(Drawing(), TEXTS, num_samples=1)
    with pytest.raises(TypeError, match="`bond` must be a trainer.*list"):
        informative(TEXTS, Drawing())
    with pytest.raises(ValueError, match="different rewards.*0 of 6.*6 with 5"):
        kept(TEXTS, reward=lambda prompts, completions: [5] * len(prompts))


def test_a_policy_learns_from_what_is_kept():
    """Samples of a real policy; an empty completion has no length."""
    bond = keras_bond.Bond(
        make_policy(),
        length_reward,
        max_prompt_length=12,
        max_completion_length=3,
    )
    first = PROMPTS[0]

    def mixed(prompts, completions):
        lengths = length_reward(prompts, completions)
        return [n * (p != first) for p, n in zip(prompts, lengths)]

    bond.reward = mixed
    chosen = informative(bond, PROMPTS[:3], batch_size=2)
    assert chosen == {"prompts": PROMPTS[1:3]}
    _, rewards = bond.draw_scored(chosen, num_samples=2)
    assert rewards.shape == (2, 2)
