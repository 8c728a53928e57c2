"""JSONL files: what is wrong in them is named by file and line."""

import json

import pytest

import keras_bond
from keras_bond import data
from keras_bond.data import prompts
from keras_bond.data.tokenizer import TextTokenizer
from tests.tiny import chat_vocabulary
from tests.tiny import make_policy

GOOD = b'{"prompt": "fox", "n": 1}\n'


@pytest.fixture(scope="module")
def encoder():
    policy = make_policy(proto=chat_vocabulary())
    tokenizer = TextTokenizer(policy.preprocessor)
    return prompts.PromptEncoder(tokenizer, (32,), 200)


def deep(levels):
    return b"[" * levels + b"]" * levels


def prompt(value):
    return b'{"prompt": ' + value + b', "n": 1}'


BAD_LINES = {
    "half an object": b'{"prompt": "a"',
    "a list": b'["a"]',
    "a string": b'"a"',
    "not UTF-8": b'{"prompt": "\xff", "n": 1}',
    "UTF-16": '{"prompt": "a", "n": 1}'.encode("utf-16"),
    "half a surrogate": prompt(rb'"\ud83d"'),
    "deep": prompt(deep(100_000)),
    "deep for copies": prompt(deep(300)),
    "a deep other column": b'{"prompt": "a", "n": ' + deep(300) + b"}",
    "many digits": prompt(b"1" * 5000),
    "a number": prompt(b"5"),
    "null": prompt(b"null"),
    "an object": prompt(b"{}"),
    "an empty conversation": prompt(b"[]"),
    "a conversation": prompt(b'[{"role": "user", "content": "a"}]'),
    "another column": b'{"prompt": "a", "m": 1}',
    "a column less": b'{"prompt": "a"}',
    "too long": prompt(b'"' + b"fox " * 20 + b'"'),
    "two start tokens": prompt(b'"<bos><bos>fox"'),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named(tmp_path, encoder, name):
    """Pins: RecursionError, UnicodeDecodeError, and errors without a line."""
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + b"\n" + BAD_LINES[name] + b"\n" + GOOD)
    with pytest.raises((TypeError, ValueError), match="Received") as error:
        prompts.to_batches(path, encoder)
    assert type(error.value) in (TypeError, ValueError)
    assert f"line 3 of {path}" in str(error.value)


BAD_CHATS = {
    "content": [{"role": "user", "content": None}],
    "role": [{"role": "tool", "content": "a"}],
    "kind of role": [{"role": {}, "content": "a"}],
    "system": [{"role": "system", "content": "a"}],
}


@pytest.mark.parametrize("name", BAD_CHATS)
def test_a_bad_conversation_is_named(tmp_path, encoder, name):
    path = tmp_path / "bad.jsonl"
    good = [{"role": "user", "content": "a"}]
    rows = [{"prompt": chat} for chat in (good, BAD_CHATS[name])]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    with pytest.raises((TypeError, ValueError), match="line 3 of .*bad.jsonl"):
        prompts.to_batches(path, encoder)


@pytest.mark.parametrize(
    "ids",
    [[2, -1], [2, 200], [2, 0.5], [True], "fox", None, [[2]], [2, 10**40]],
)
def test_bad_token_ids_are_named(tmp_path, encoder, ids):
    path = tmp_path / "bad.jsonl"
    rows = [{"token_ids": [2, 5]}, {"token_ids": ids}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises((TypeError, ValueError), match="line 2 of .*bad.jsonl"):
        prompts.to_batches(path, encoder)


BAD_PAIRS = {
    "number": {"chosen": 5},
    "null": {"rejected": None},
    "margin": {"margin": "1"},
    "NaN": {"margin": float("nan")},
    "huge": {"margin": 10**400},
    "too long": {"chosen": "fox " * 40},
    "surrogate": {"rejected": "\ud83d"},
    "start tokens": {"prompt": "<bos><bos>"},
    "no answer": {"chosen": [{"role": "user", "content": "a"}]},
    "no content": {"chosen": [{"role": "assistant"}]},
    "deep": {"chosen": [[]]},
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_a_bad_pair_is_named(tmp_path, name):
    path = tmp_path / "bad.jsonl"
    good = {"prompt": "a", "chosen": "fox", "rejected": "a", "margin": 1}
    rows = [good, {**good, **BAD_PAIRS[name]}]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    model = keras_bond.RewardModel(make_policy(num_layers=1), max_length=24)
    with pytest.raises((TypeError, ValueError), match="line 3 of .*bad.jsonl"):
        model.encode_pairs(path)


@pytest.mark.parametrize("lines", [[GOOD, GOOD], [b"", GOOD, b"\r\n", GOOD]])
def test_byte_order_marks_are_skipped(tmp_path, encoder, lines):
    """As editors on Windows write them; joined files have several."""
    mark = b"\xef\xbb\xbf"
    path = tmp_path / "marked.jsonl"
    path.write_bytes(b"\n".join(mark + line for line in lines))
    assert data.read_jsonl(path) == [{"prompt": "fox", "n": 1}] * 2
    batches = prompts.to_batches(path, encoder)
    assert batches.table.prompts == ["fox", "fox"]


def test_lines_are_remembered_by_prompts_from(tmp_path, encoder):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"q": "fox", "n": 1}\n\n{"q": 5, "n": 1}')
    table = data.prompts_from(path, "q")
    with pytest.raises(TypeError, match="prompt 1, line 3 of .*rows.jsonl"):
        prompts.to_batches(table, encoder)
