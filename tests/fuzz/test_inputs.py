"""Junk as prompts, preferences and scores: every row once, or refused."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies

import keras_bond
from keras_bond import data
from keras_bond import rewards
from keras_bond.data import prompts as prompts_lib
from keras_bond.rewards import Samples
from tests.fuzz.outcomes import JUNK
from tests.fuzz.outcomes import examples
from tests.fuzz.outcomes import result_or_named_error
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

pytestmark = pytest.mark.one_backend

TEXTS = strategies.one_of(
    strategies.sampled_from(PROMPTS),
    strategies.text(max_size=8),
    strategies.sampled_from(["", " ", "\x00", "🎈" * 9, "a " * 40, "<eos>"]),
)
ROWS = strategies.lists(TEXTS, max_size=9)
NAMES = strategies.sampled_from(
    ["prompts", "prompt", "token_ids", "padding_mask", "answer", "completions"]
)
COLUMN = strategies.one_of(
    ROWS,
    strategies.lists(JUNK, max_size=4),
    strategies.lists(
        strategies.lists(strategies.integers(-1, 70), max_size=4), max_size=4
    ),
    strategies.lists(
        strategies.dictionaries(
            strategies.sampled_from(["role", "content", "x"]),
            strategies.one_of(TEXTS, JUNK),
            max_size=3,
        ),
        max_size=3,
    ),
    JUNK,
)
CONVERSATION = strategies.lists(
    strategies.fixed_dictionaries(
        {
            "role": strategies.sampled_from(["user", "assistant", "system"]),
            "content": TEXTS,
        }
    ),
    max_size=3,
)
PROMPT_DATA = strategies.one_of(
    ROWS,
    ROWS.map(lambda rows: np.array(rows, dtype=object)),
    ROWS.map(lambda rows: {"prompts": rows, "answer": rows}),
    strategies.lists(CONVERSATION, max_size=3),
    strategies.dictionaries(NAMES, COLUMN, max_size=3),
    strategies.lists(
        strategies.dictionaries(NAMES, TEXTS, max_size=3), max_size=3
    ),
    COLUMN,
)
BATCH_SIZES = strategies.one_of(
    strategies.none(), strategies.integers(1, 5), JUNK
)


@pytest.fixture(scope="module")
def bond():
    made = keras_bond.JBond(
        make_policy(num_layers=1),
        length_reward,
        max_prompt_length=12,
        max_completion_length=3,
        seed=1,
    )
    made.compile(keras.optimizers.SGD(1e-4), **COMPILED_QUICKLY)
    return made


@examples(300)
@given(PROMPT_DATA, BATCH_SIZES)
def test_batches_hold_every_prompt_once(bond, prompts, batch_size):
    def read():
        batches = prompts_lib.to_batches(prompts, bond.encoder, batch_size)
        return batches, [batches[i][0] for i in range(batches.num_batches)]

    read_batches, _ = result_or_named_error(read)
    if read_batches is None:
        return
    batches, parts = read_batches
    vocabulary_size = bond.policy.backbone.vocabulary_size
    rows = np.concatenate([part["prompt_index"] for part in parts])
    assert sorted(rows[rows >= 0]) == list(range(batches.prompts_per_epoch))
    for part in parts:
        ids, lengths = part["prompt_ids"], part["prompt_lengths"]
        assert ids.shape == (len(lengths), 12)
        assert 1 <= lengths.min() and lengths.max() <= 12
        assert 0 <= ids.min() and ids.max() < vocabulary_size


@examples(12)
@given(PROMPT_DATA)
def test_fit(bond, prompts):
    before = values_of(bond.policy.trainable_variables)
    history, error = result_or_named_error(
        lambda: bond.fit(prompts, batch_size=4, verbose=0)
    )
    after = values_of(bond.policy.trainable_variables)
    assert all(np.isfinite(value).all() for value in after)
    if error is not None:
        for a, b in zip(before, after):
            np.testing.assert_array_equal(a, b)


# Keras says so where `steps_per_epoch` is more than there is.
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@examples(20)
@given(
    strategies.dictionaries(
        strategies.sampled_from(
            [
                "y",
                "batch_size",
                "validation_data",
                "steps_per_epoch",
                "callbacks",
            ]
        ),
        JUNK,
        min_size=1,
        max_size=2,
    )
)
def test_arguments_of_fit(bond, arguments):
    result_or_named_error(lambda: bond.fit(PROMPTS[:4], verbose=0, **arguments))


PAIRS = strategies.one_of(
    strategies.lists(
        strategies.dictionaries(
            strategies.sampled_from(
                ["prompt", "chosen", "rejected", "margin", "other"]
            ),
            strategies.one_of(TEXTS, CONVERSATION, JUNK),
            max_size=4,
        ),
        max_size=3,
    ),
    strategies.dictionaries(
        strategies.sampled_from(["prompts", "chosen", "rejected", "margin"]),
        COLUMN,
        max_size=4,
    ),
    COLUMN,
)


@examples(200)
@given(PAIRS)
def test_preference_pairs(pairs):
    read, _ = result_or_named_error(lambda: data.to_pairs(pairs))
    if read is not None:
        assert len(read["chosen"]) == len(read["rejected"]) > 0
        assert np.isfinite(np.asarray(read["margin"], "float64")).all()


@examples(150)
@given(
    strategies.one_of(
        JUNK,
        strategies.lists(
            strategies.one_of(JUNK, strategies.floats()), max_size=4
        ),
        strategies.lists(
            strategies.floats(allow_nan=False, allow_infinity=False, width=32),
            min_size=3,
            max_size=3,
        ).map(np.array),
    )
)
def test_what_a_reward_returns(answer):
    samples = Samples(
        prompts=["a"] * 3,
        completions=["b"] * 3,
        columns={},
        token_ids=np.zeros((3, 1), "int32"),
        padding_mask=np.ones((3, 1), bool),
        num_samples=3,
    )
    scorer = rewards.get(lambda prompts, completions: answer)
    scores, _ = result_or_named_error(lambda: scorer(samples))
    if scores is not None:
        assert scores.shape == (3,) and scores.dtype == "float64"
        for score, said in zip(scores, answer):
            assert np.isnan(score) if said is None else np.isfinite(score)
