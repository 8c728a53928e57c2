"""Completions that the data give, of all kinds of data."""

import json

import numpy as np
import pytest

from keras_bond import data as data_lib
from keras_bond.data import prompts
from keras_bond.data.given import GivenReader
from keras_bond.data.tokenizer import TextTokenizer
from tests.tiny import chat_vocabulary
from tests.tiny import make_policy

pytestmark = pytest.mark.one_backend

STOP, END_OF_TURN, LENGTH = 1, 5, 6
TEXTS = ["fox", "the dog", "a b c", "lazy"]
COMPLETIONS = [["fox", "a b"], ["the", ""], ["dog", "the fox"], ["b", "a"]]
REWARDS = [[0.0, 1.0], [2.0, 0.5], [1.0, 1.0], [None, 3.0]]
ROWS = [
    {"prompt": text, "completions": given, "rewards": rewards, "n": i}
    for i, (text, given, rewards) in enumerate(zip(TEXTS, COMPLETIONS, REWARDS))
]
COLUMNS = {
    "prompts": TEXTS,
    "completions": COMPLETIONS,
    "rewards": REWARDS,
    "n": list(range(4)),
}


def make_encoder(tokenizer=True, stops=(STOP, END_OF_TURN), **options):
    policy = make_policy(num_layers=1, proto=chat_vocabulary())
    tokenizer = TextTokenizer(policy.preprocessor) if tokenizer else None
    encoder = prompts.PromptEncoder(tokenizer, (40,), 120)
    options = {"max_completion_length": LENGTH, "least": 2, **options}
    encoder.given_reader = GivenReader(encoder, stops, **options)
    return encoder


@pytest.fixture(scope="module")
def encoder():
    return make_encoder(max_completion_length=10)


def ids_of(encoder, text, *stop):
    return [*encoder.tokenizer.encode_bare([text])[0], *stop]


def read(encoder, columns):
    """Token ids and rewards of all prompts, `None` without rewards."""
    batches = prompts.to_batches(columns, encoder, 2)
    given = batches.take(list(range(len(batches.table)))).given
    ids = [[row.tolist() for row in x] for x in given["completion_ids"]]
    rewards = given.get("rewards")
    return ids, rewards and np.stack(rewards)


def jsonl(path):
    path = path / "given.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def frame(path):
    return pytest.importorskip("pandas").DataFrame(ROWS)


def parquet(path):
    """Cells of a Parquet file are arrays of objects."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame(path).to_parquet(path / "given.parquet")
    return pandas.read_parquet(path / "given.parquet")


def table(path):
    return pytest.importorskip("pyarrow").Table.from_pylist(ROWS)


def hugging_face(path):
    return pytest.importorskip("datasets").Dataset.from_list(ROWS)


def hugging_face_stream(path):
    return hugging_face(path).to_iterable_dataset()


def tf_rows(path):
    tf = pytest.importorskip("tensorflow")
    rewards = np.array(REWARDS, "float64")
    return tf.data.Dataset.from_tensor_slices({**COLUMNS, "rewards": rewards})


def tf_ragged(path):
    """Token ids of different lengths."""
    tf = pytest.importorskip("tensorflow")
    encoder = make_encoder()
    ids = [[ids_of(encoder, t, STOP) for t in x] for x in COMPLETIONS]
    columns = {"prompts": TEXTS, "completion_ids": tf.ragged.constant(ids)}
    columns["rewards"] = np.array(REWARDS, "float64")
    return tf.data.Dataset.from_tensor_slices(columns).batch(2)


def grain(path):
    return pytest.importorskip("grain").MapDataset.source(ROWS)


def arrays(path):
    """Padded ids, as `generate` of other libraries returns them."""
    encoder, padded = make_encoder(), np.zeros((4, 2, 10), "int32")
    for i, texts in enumerate(COMPLETIONS):
        for j, text in enumerate(texts):
            ids = ids_of(encoder, text, STOP)
            padded[i, j, : len(ids)] = ids
    rewards = np.array(REWARDS, "float64")
    return {"prompts": TEXTS, "completion_ids": padded, "rewards": rewards}


SOURCES = {
    "columns": lambda path: COLUMNS,
    "rows": lambda path: ROWS,
    "jsonl": jsonl,
    "frame": frame,
    "parquet": parquet,
    "table": table,
    "hugging_face": hugging_face,
    "hugging_face_stream": hugging_face_stream,
    "tf rows": tf_rows,
    "tf batches": lambda path: tf_rows(path).batch(2),
    "tf ragged": tf_ragged,
    "grain": grain,
    "arrays": arrays,
    "prompts_from": lambda path: data_lib.prompts_from(jsonl(path), "prompt"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_all_sources_give_the_same_completions(encoder, name, tmp_path):
    expected = [
        [(ids_of(encoder, text, STOP) + [0] * 10)[:10] for text in completions]
        for completions in COMPLETIONS
    ]
    source = SOURCES[name](tmp_path)
    own_size = name in ("tf batches", "tf ragged")
    batches = prompts.to_batches(source, encoder, None if own_size else 2)
    assert batches.given[-1] == "rewards"
    (inputs,) = batches[1]
    np.testing.assert_array_equal(inputs["given_ids"], expected[2:])
    rewards = np.stack(batches.take([0, 1, 2, 3]).given["rewards"])
    np.testing.assert_array_equal(rewards, np.array(REWARDS, "float64"))
    assert "rewards" not in batches.table.columns


def test_streams_give_completions(encoder):
    """Every batch of an endless data set has as many for each prompt."""
    tf = pytest.importorskip("tensorflow")
    stream = prompts.to_batches(tf_rows(None).repeat(), encoder, 2, steps=2)
    (inputs,) = stream[1]
    assert stream.given and inputs["given_ids"].shape == (2, 2, 10)
    ragged = tf.data.Dataset.from_generator(
        lambda: iter(
            [{"prompt": "a", "completions": ["b"] * n} for n in (2, 3)]
        ),
        output_signature={
            "prompt": tf.TensorSpec((), "string"),
            "completions": tf.TensorSpec((None,), "string"),
        },
    )
    stream = prompts.to_batches(ragged.repeat(), encoder, 1, steps=2)
    stream[0]
    with pytest.raises(ValueError, match="3 completions in prompt 1, 2 of"):
        stream[1]


def test_texts_end_with_the_stop_token_of_their_prompt():
    """That of a turn if the prompt has turns; none if they were truncated."""
    encoder = make_encoder(max_completion_length=5)
    chat = [{"role": "user", "content": "Hi"}]
    answers = [[{"role": "assistant", "content": "fox"}], "lazy"]
    ids, _ = read(encoder, {"prompts": [chat], "completions": [answers]})
    fox, lazy = (ids_of(encoder, text) for text in ("fox", "lazy"))
    assert ids == [[[*fox, END_OF_TURN], lazy]]
    ids, _ = read(encoder, {"prompts": ["Hi"], "completions": [["fox", "fox"]]})
    assert ids == [[[*fox, STOP]] * 2]
    encoder = make_encoder(stops=(9,), max_completion_length=5)
    ids, _ = read(encoder, {"prompts": [chat], "completions": [["fox", "fox"]]})
    assert ids == [[[*fox, 9]] * 2]


def test_ids_are_kept_where_the_text_has_other_tokens():
    """What was drawn counts, not how its text is usually tokenized."""
    policy = make_policy(num_layers=1)
    tokenizer = TextTokenizer(policy.preprocessor)
    encoder = prompts.PromptEncoder(tokenizer, (12,), 99)
    encoder.given_reader = GivenReader(encoder, (STOP,), LENGTH)
    apart = [tokenizer.tokenizer.token_to_id(c) for c in "▁the"]
    text = tokenizer.decode([apart])[0]
    assert text == "the" and tokenizer.encode_bare([text])[0] != apart
    columns = {"prompts": ["fox"], "completion_ids": [[[*apart, STOP]]]}
    for extra in ({}, {"completions": [[text]]}):
        ids, rewards = read(encoder, {**columns, **extra})
        assert ids[0][0][: len(apart) + 1] == [*apart, STOP] and rewards is None
    with pytest.raises(
        ValueError, match="retokenize=True.*completion 0, 'dog'"
    ):
        read(encoder, {**columns, "completions": [["dog"]]})


def test_text_that_is_not_what_its_tokens_say_is_a_choice():
    columns = {"prompts": ["a"], "completions": [["a\tb", "a"]]}
    with pytest.raises(
        ValueError, match="completion_ids.*say 'a b', in prompt 0"
    ):
        read(make_encoder(), columns)
    ids, _ = read(make_encoder(retokenize=True), columns)
    assert make_encoder().tokenizer.decode(ids[0]) == ["a b", "a"]


WRONG = {
    "no list": ({"completions": ["fox", "dog"]}, "must have a list.*rename it"),
    "a conversation": (
        {"completions": [[{"role": "assistant", "content": "a"}]] * 2},
        "must have a list",
    ),
    "nothing": (
        {"completions": [["a", "b"], None]},
        "must have a list.*prompt 1",
    ),
    "empty": ({"completions": [["a", "b"], []]}, "at least 2.*0 completions"),
    "too few": (
        {"completions": [["a", "b"], ["a"]]},
        "at least 2.*in prompt 1",
    ),
    "ragged": (
        {"completions": [["a", "b"], ["a"] * 3]},
        "same number.*3 completions, 2 of the first prompt, in prompt 1",
    ),
    "a number": (
        {"completions": [["a", 1], ["a", "b"]]},
        "must hold strings.*1 of",
    ),
    "half a pair": (
        {"completions": [["a", "\ud83d"]] * 2},
        "valid Unicode.*prompt 0",
    ),
    "a question": (
        {"completions": [["a", [{"role": "user", "content": "a"}]]] * 2},
        "one turn of the assistant",
    ),
    "too long": ({"completions": [["a", "a b c d"]] * 2}, "must fit.*8 tokens"),
    "no stop": (
        {"completion_ids": [[[6, 1], [6]]] * 2},
        "end with a stop token",
    ),
    "no token": ({"completion_ids": [[[6, 1], []]] * 2}, "1 with 0 tokens"),
    "only padding": (
        {"completion_ids": [[[6, 1], [6] + [0] * 5]] * 2},
        "1 tokens",
    ),
    "after the stop": (
        {"completion_ids": [[[6, 1], [6, 1, 6, 1]]] * 2},
        "first stop token.*completion 1 with 4 tokens, a stop token at 1",
    ),
    "vocabulary": (
        {"completion_ids": [[[6, 1], [120, 1]]] * 2},
        "token id 120",
    ),
    "negative": ({"completion_ids": [[[6, 1], [-1, 1]]] * 2}, "token id -1"),
    "floats": (
        {"completion_ids": [[[6, 1], [0.5, 1]]] * 2},
        "list of integers",
    ),
    "flat ids": ({"completion_ids": [[6, 1], [6, 1]]}, "list of integers"),
    "rewards": (
        {"completions": [["a", "b"]] * 2, "rewards": [[0, 1], [0]]},
        "one reward each.*'rewards': 1}, in prompt 1",
    ),
    "one reward": (
        {"completions": [["a", "b"]] * 2, "rewards": [0.0, 1.0]},
        "`rewards` must have a list",
    ),
    "some rewards": (
        {"completions": [["a", "b"]] * 2, "rewards": [[0.0, 1.0], None]},
        "`rewards` must have a list.*in prompt 1",
    ),
    "text as reward": (
        {"completions": [["a", "b"]] * 2, "rewards": [[0, "good"]] * 2},
        "must return numbers.*'good'",
    ),
    "infinite reward": (
        {"completions": [["a", "b"]] * 2, "rewards": [[0, float("inf")]] * 2},
        "finite numbers.*completion 1, in prompt 0",
    ),
    "counts": (
        {
            "completions": [["a", "b"]] * 2,
            "completion_ids": [[[6, 1]]] * 2,
        },
        "one text, one list of token ids",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_completions_are_refused_by_name(encoder, name):
    columns, message = WRONG[name]
    encoder = make_encoder()
    with pytest.raises(
        (TypeError, ValueError), match=f"{message}.*prompt [01]|{message}"
    ):
        read(encoder, {"prompts": ["a", "b"], **columns})


def test_errors_name_the_line_of_a_file(tmp_path):
    path = tmp_path / "given.jsonl"
    rows = [ROWS[0], {**ROWS[1], "completions": ["a"]}]
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    with pytest.raises(ValueError, match="prompt 1, line 3 of .*given.jsonl"):
        read(make_encoder(), str(path))
    del rows[1]["completions"]
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    with pytest.raises(ValueError, match="same columns.*line 3"):
        read(make_encoder(), str(path))


def test_without_a_tokenizer_completions_are_token_ids():
    encoder = make_encoder(tokenizer=False, stops=(STOP,))
    columns = {"token_ids": [[5, 6]], "completion_ids": [[[7, 1], [8, 1, 0]]]}
    ids, _ = read(encoder, columns)
    assert ids == [[[7, 1, 0, 0, 0, 0], [8, 1, 0, 0, 0, 0]]]
    with pytest.raises(ValueError, match="no tokenizer.*completion_ids"):
        read(encoder, {"token_ids": [[5]], "completions": [["a", "b"]]})


def test_prompts_with_completions_are_not_truncated(encoder):
    short = prompts.PromptEncoder(encoder.tokenizer, (4,), 120, "left")
    short.given_reader = encoder.given_reader
    columns = {"prompts": ["a", "the dog"], "completions": [["a", "b"]] * 2}
    with pytest.raises(ValueError, match="not be truncated.*prompt 1 with"):
        prompts.to_batches(columns, short)
    assert prompts.to_batches(columns["prompts"], short)


def test_rewards_without_completions_are_a_column(encoder):
    batches = prompts.to_batches(
        {"prompts": TEXTS, "rewards": REWARDS}, encoder
    )
    assert batches.table.columns == {"rewards": REWARDS} and not batches.given


def test_given_completions_have_no_use_elsewhere(encoder):
    with pytest.raises(ValueError, match="leave the columns out.*rename"):
        prompts.to_finite_batches(COLUMNS, encoder, 2)
    bare = prompts.PromptEncoder(encoder.tokenizer, (40,), 120)
    for name in ("completions", "completion_ids"):
        with pytest.raises(ValueError, match="rename"):
            prompts.to_batches({"prompts": ["a"], name: ["gold"]}, bare)
