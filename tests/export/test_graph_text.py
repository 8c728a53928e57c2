"""The tokenizer in the graph against the one that training uses."""

import keras
import pytest
import tensorflow as tf

import keras_bond
from keras_bond.data import chat_formats
from keras_bond.data.chat_formats import GEMMA
from keras_bond.data.tokenizer import TextTokenizer
from keras_bond.export.serving.text import GraphText
from keras_bond.export.serving.text import graph_tokenizer
from tests.tiny import chat_vocabulary
from tests.tiny import length_reward
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
    "<bos>the quick",
    "<bos>",
    "\u2581x",
    "e\u0301",
    "0123456789",
    "\ufeffa\u200bb",
]


CHAT = [
    {"role": "user", "content": " a fox "},
    {"role": "assistant", "content": "the"},
]
# Every kind of prompt that `policy.generate` takes as it is.
ALIKE = [
    "",
    " ",
    "  the   quick  ",
    "a\n",
    GEMMA.render(CHAT[:1]),
    GEMMA.render(CHAT),
    "<end_of_turn>fox<eos>",
]


@pytest.fixture(scope="module")
def policy():
    return make_policy(num_layers=1, proto=chat_vocabulary())


@pytest.fixture(scope="module")
def tokenizer(policy):
    return TextTokenizer(policy.preprocessor)


@pytest.fixture(scope="module")
def text(tokenizer):
    return GraphText(
        graph_tokenizer(tokenizer.tokenizer),
        {
            "prompt_template": "{prompt}",
            "start_token_ids": tokenizer.start,
            "start_text": tokenizer.start_text,
            "start_repeats": False,
            "special_token_ids": sorted(tokenizer.special_token_ids()),
            "max_prompt_length": 99,
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
    ids = tf.where(ids == 0, 250, ids)
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


def test_two_start_tokens_are_refused(text):
    for prompt in ("<bos><bos>fox", "<bos>a\n<bos>b"):
        with pytest.raises(tf.errors.InvalidArgumentError, match="one start"):
            text.encode_prompts(tf.constant(["fox", prompt]))


def test_a_start_token_may_stand_before_every_turn(
    tokenizer, text, monkeypatch
):
    """As in SmolLM2, where a turn begins with it."""
    monkeypatch.setattr(text, "start_repeats", True)
    monkeypatch.setattr(chat_formats, "OPENERS", {"<bos>"})
    prompts = ["<bos>a\n<bos>b", "a<bos>b"]
    ids, lengths = text.encode_prompts(tf.constant(prompts))
    rows = [row[:n].tolist() for row, n in zip(ids.numpy(), lengths.numpy())]
    assert tokenizer.start_repeats and rows == tokenizer.encode(prompts)
    with pytest.raises(tf.errors.InvalidArgumentError, match="one start"):
        text.encode_prompts(tf.constant(["<bos><bos>fox"]))


def test_a_prompt_has_the_same_ids_everywhere(policy, text):
    """In `fit`, `bond.generate`, `policy.generate` and the exported model.

    KerasHub spells a written start token, so it gets the prompt without it.
    """
    bond = keras_bond.JBond(
        policy,
        length_reward,
        max_prompt_length=99,
        max_completion_length=2,
        seed=1,
    )
    given = [*ALIKE, "<bos> the quick "]
    of_generate = [*ALIKE, " the quick "]
    (fitted,) = bond._to_batches(given, None, len(given))[0]
    samples, _ = bond.draw_scored(given)
    in_policy = policy.preprocessor.generate_preprocess(
        of_generate, sequence_length=99
    )
    in_policy = {k: keras.ops.convert_to_numpy(v) for k, v in in_policy.items()}
    exported, lengths = text.encode_prompts(tf.constant(given))
    for i, length in enumerate(fitted["prompt_lengths"]):
        expected = fitted["prompt_ids"][i, :length].tolist()
        drawn = samples.token_ids[i][samples.padding_mask[i]].tolist()
        assert drawn == [*expected, *samples.completion_ids[i]]
        kept = in_policy["padding_mask"][i].astype(bool)
        assert in_policy["token_ids"][i][kept].tolist() == expected
        assert exported[i, : lengths[i]].numpy().tolist() == expected
    (chat,) = bond._to_batches([CHAT], None, 1)[0]
    length = int(fitted["prompt_lengths"][5])
    assert chat["prompt_ids"][0].tolist() == fitted["prompt_ids"][5].tolist()
    assert length == int(chat["prompt_lengths"][0])
