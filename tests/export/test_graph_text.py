"""The tokenizer in the graph against the one that training uses."""

import pytest
import tensorflow as tf

from keras_bond.data.tokenizer import TextTokenizer
from keras_bond.export.serving.text import GraphText
from tests.tiny import make_policy

STRINGS = [
    "",
    " ",
    "the quick",
    "  the   quick  ",
    "the quick\nbrown\tfox",
    "Füchse 狐 🦊",
    "<end_of_turn>",
    "a<end_of_turn>b<bos><eos>",
    "\u2581x",
    "e\u0301",
    "0123456789",
    "\ufeffa\u200bb",
]


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer(make_policy().preprocessor)


@pytest.fixture(scope="module")
def text(tokenizer):
    return GraphText(
        tokenizer.tokenizer.proto,
        {
            "prompt_template": "{prompt}",
            "start_token_ids": tokenizer.start,
            "special_token_ids": sorted(tokenizer.special_token_ids()),
            "max_prompt_length": 40,
            "max_new_tokens": 40,
        },
    )


def test_strings_become_the_same_tokens(tokenizer, text):
    ids, lengths = text.encode_prompts(tf.constant(STRINGS))
    rows = [row[:n].tolist() for row, n in zip(ids.numpy(), lengths.numpy())]
    assert rows == tokenizer.encode(STRINGS)
    assert not any(row[n:].any() for row, n in zip(ids.numpy(), lengths))


def test_tokens_become_the_same_strings(tokenizer, text):
    rows = [[*row, 1, 0, 4] for row in tokenizer.encode(STRINGS)]
    padded = tf.ragged.constant(rows).to_tensor(shape=(None, 40))
    texts = text.decode(padded, tf.constant([len(row) for row in rows]))
    assert [t.decode() for t in texts.numpy()] == tokenizer.decode(rows)


def test_ids_without_a_token_say_nothing(text):
    """An embedding padded to a round size can draw them."""
    ids, lengths = text.encode_completions(tf.constant(["the quick"]))
    ids = tf.where(ids == 0, 60, ids)
    assert text.decode(ids, tf.constant([40])).numpy() == [b"the quick"]
    assert lengths.numpy() < 40


def test_templates_stand_around_the_prompt(tokenizer, text):
    text.before, text.after = "a ", " b"
    ids, lengths = text.encode_prompts(tf.constant(["fox"]))
    text.before = text.after = ""
    assert (
        ids[0, : lengths[0]].numpy().tolist()
        == tokenizer.encode(["a fox b"])[0]
    )
