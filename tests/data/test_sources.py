"""Prompts and columns from files, tables and data sets of other libraries."""

import functools
import json

import numpy as np
import pytest

from keras_bond import data
from keras_bond.data import prompts as prompts_lib
from keras_bond.data import table as table_lib
from keras_bond.data.tokenizer import TextTokenizer
from tests.tiny import PROMPTS
from tests.tiny import chat_vocabulary
from tests.tiny import make_policy

ROWS = [
    {
        "question": prompt,
        "answer": "fox" * i,
        "level": i,
        "words": prompt.split(),
    }
    for i, prompt in enumerate(PROMPTS[:5])
]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
TABLE = {
    "prompts": COLUMNS["question"],
    "answer": COLUMNS["answer"],
    "level": COLUMNS["level"],
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps(row) for row in ROWS]
    file.write_text("\n\n".join(lines) + "\n")
    return file


@functools.cache
def questions():
    """A builder of tfds, as users write one for rows of their own."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features.FeaturesDict(
        {
            "question": tfds.features.Text(),
            "answer": tfds.features.Text(),
            "level": np.int32,
            "words": tfds.features.Sequence(tfds.features.Text()),
        }
    )

    class Questions(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, downloads):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(data.read_jsonl(self.path))

    return Questions


def prepare(path, file_format):
    builder = questions()(
        data_dir=path.parent / file_format, file_format=file_format
    )
    builder.path = path
    builder.download_and_prepare()
    return builder


def tfds_load(path):
    return prepare(path, "tfrecord").as_dataset(split="train")


def tfds_data_source(path):
    return prepare(path, "array_record").as_data_source("train")


def hugging_face(path):
    return pytest.importorskip("datasets").Dataset.from_list(ROWS)


def grain_rows(path):
    return pytest.importorskip("grain").MapDataset.source(ROWS)


def tf_batches(path):
    tf = pytest.importorskip("tensorflow")
    flat = {k: v for k, v in COLUMNS.items() if k != "words"}
    return tf.data.Dataset.from_tensor_slices(flat).batch(2)


SOURCES = {
    "path": lambda path: path,
    "name": str,
    "rows": lambda path: ROWS,
    "columns": lambda path: COLUMNS,
    "Hugging Face": hugging_face,
    "grain": grain_rows,
    "tf.data batches": tf_batches,
    "tfds.load": tfds_load,
    "tfds.data_source": tfds_data_source,
}


def in_order(table):
    """Sorted by level: tfds shuffles what it writes."""
    order = np.argsort(table["level"])
    return {name: [column[i] for i in order] for name, column in table.items()}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_table(path, name):
    """Pins: bytes, NumPy values, rows that are taken for batches."""
    source = SOURCES[name](path)
    table = data.prompts_from(source, "question", columns=["answer", "level"])
    assert in_order(table) == TABLE
    assert {type(value) for value in table["level"]} == {int}
    if name != "tf.data batches":
        table = in_order(data.prompts_from(source, "question"))
        assert set(table) == {"prompts", "answer", "level", "words"}
        assert table["words"] == COLUMNS["words"]


def test_templates_are_filled_from_all_columns(path):
    table = data.prompts_from(
        path, template="{{{level}}} {question}:", columns=["answer"]
    )
    expected = [f"{{{row['level']}}} {row['question']}:" for row in ROWS]
    assert table == {"prompts": expected, "answer": COLUMNS["answer"]}


def test_nested_features_keep_their_values():
    """As in the `answers` of question answering in tfds."""
    tf = pytest.importorskip("tensorflow")
    nested = {"q": ["a"], "answers": {"text": [["b", "c"]], "start": [[1, 2]]}}
    table = data.prompts_from(tf.data.Dataset.from_tensor_slices(nested), "q")
    assert table["answers"] == [{"text": ["b", "c"], "start": [1, 2]}]


@pytest.mark.parametrize("kind", ["load", "data_source"])
def test_stock_data_sets_of_tfds(kind):
    """GSM8K as users load it; the rows are invented."""
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=3):
        source = getattr(tfds, kind)("gsm8k", split="train")
        table = data.prompts_from(
            source, template="Q: {question}", columns=["answer"]
        )
    assert set(table) == {"prompts", "answer"}
    assert all(prompt.startswith("Q: ") for prompt in table["prompts"])
    assert [type(answer) for answer in table["answer"]] == [str] * 3


def test_the_columns_of_every_row_stay_beside_its_prompt(path):
    """As `fit` reads a file, rows, and what `prompts_from` returns."""
    answers = dict(zip(COLUMNS["question"], COLUMNS["answer"]))
    named = [{**row, "prompt": row["question"]} for row in ROWS]
    renamed = path.parent / "named.jsonl"
    renamed.write_text("".join(json.dumps(row) + "\n" for row in named))
    encoder = prompts_lib.PromptEncoder(
        TextTokenizer(make_policy().preprocessor), (99,), 64
    )
    source = data.prompts_from(tfds_data_source(path), "question")
    for prompts in (source, named, renamed, str(renamed)):
        batches = prompts_lib.to_batches(prompts, encoder, 5, lambda: 1)
        batches.on_epoch_begin()
        rows = batches[0][0]["prompt_index"].tolist()
        table = batches.take(rows)
        assert sorted(table.prompts) == sorted(COLUMNS["question"])
        assert table.columns["answer"] == [answers[p] for p in table.prompts]
        assert table.conversations is None


TURNS = [
    {"role": "system", "content": "Be short. "},
    {"role": "user", "content": " Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why?"},
]


@pytest.mark.parametrize("source", ["list", "column", "jsonl", "Hugging Face"])
def test_conversations_are_prompts(tmp_path, source):
    """The policy sees the text, the reward the turns."""
    chats = [TURNS[1:2], TURNS]
    rows = [{"prompt": chat, "n": i} for i, chat in enumerate(chats)]
    if source == "list":
        prompts = chats
    elif source == "column":
        prompts = {"prompt": chats}
    elif source == "jsonl":
        prompts = tmp_path / "chats.jsonl"
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        prompts = pytest.importorskip("datasets").Dataset.from_list(rows)
    policy = make_policy(proto=chat_vocabulary())
    tokenizer = TextTokenizer(policy.preprocessor)
    encoder = prompts_lib.PromptEncoder(tokenizer, (400,), 200)
    batches = prompts_lib.to_batches(prompts, encoder, 2)
    table = batches.take([0, 1])
    texts = table.prompts
    assert texts == [data.render_chat(chat, policy) for chat in chats]
    assert table.conversations == chats
    assert set(table.columns) <= {"n"}
    (inputs,) = batches[0]
    length = inputs["prompt_lengths"][1]
    expected = tokenizer.encode(texts)[1]
    assert inputs["prompt_ids"][1, :length].tolist() == expected
    end = tokenizer.end_of_turn_token_id()
    assert expected.count(end) == 3 and expected[0] == 2


def repeated(path):
    return pytest.importorskip("grain").MapDataset.source(ROWS).repeat()


def endless(path):
    return tf_batches(path).repeat()


def supervised(path):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((["q"], ["a"]))


def splits(path):
    return {"train": tfds_load(path)}


def source_splits(path):
    return {"train": tfds_data_source(path)}


BAD_SOURCES = {
    "endless tf.data": (endless, {}, ValueError, "`data` must end"),
    "endless grain": (repeated, {}, ValueError, "`data` must end"),
    "supervised": (supervised, {}, TypeError, "without `as_supervised`"),
    "splits": (splits, {}, ValueError, "splits .'train'."),
    "sources": (source_splits, {}, ValueError, "splits .'train'."),
    "empty": (lambda path: [], {}, ValueError, "at least one row"),
    "text": (lambda path: "rows.csv", {}, TypeError, "path of a .jsonl"),
    "number": (lambda path: 5, {}, TypeError, "path of a .jsonl"),
    "ragged": (
        lambda path: [{"question": "a"}, {"q": "b"}],
        {},
        ValueError,
        r"Received: \['q'\] in row 1",
    ),
    "mixed": (
        lambda path: [{"question": "a"}, None],
        {},
        TypeError,
        "NoneType as row 1",
    ),
    "column": (str, {"prompt": "q"}, ValueError, "'q', columns .'answer'"),
    "kept": (str, {"columns": ["a"]}, ValueError, "'a', columns .'answer'"),
    "both": (str, {"template": "x"}, ValueError, "Exactly one of `prompt`"),
    "filled": (
        str,
        {"prompt": None, "template": "{q}"},
        ValueError,
        "'q', columns .'answer'",
    ),
    "braces": (
        str,
        {"prompt": None, "template": "{question"},
        ValueError,
        "`template` must be a text",
    ),
    "attribute": (
        str,
        {"prompt": None, "template": "{question.zz}"},
        ValueError,
        "`template` must .* 'zz', in row 0",
    ),
    "index": (
        lambda path: [{"q": ["a", "b"]}, {"q": ["a"]}],
        {"prompt": None, "template": "{q[1]}"},
        ValueError,
        "`template` must .* in row 1",
    ),
    "position": (
        str,
        {"prompt": None, "template": "{}"},
        ValueError,
        "`template` must .* in row 0",
    ),
    "value": (
        lambda path: [{"q": "a"}, {"q": None}],
        {"prompt": None, "template": "Q {q}"},
        ValueError,
        "'q' has no value: leave the row out, in row 1",
    ),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_what_is_no_table_is_named(path, name):
    make, arguments, error, text = BAD_SOURCES[name]
    with pytest.raises(error, match=text):
        data.prompts_from(make(path), **{"prompt": "question", **arguments})


def test_strings_among_conversations_are_named():
    with pytest.raises(TypeError, match="all of them conversations"):
        table_lib.to_table([TURNS, "Hi"])


def test_a_column_may_be_called_conversations():
    """As in ShareGPT's data: it is no prompt, and goes to the reward."""
    table = table_lib.to_table({"prompt": ["a"], "conversations": [TURNS]})
    assert table.conversations is None
    assert table.columns == {"conversations": [TURNS]}


def test_batches_of_one_data_set_have_the_same_columns():
    """Pins: columns that lose their prompts where a batch has fewer."""
    encoder = prompts_lib.PromptEncoder(None, (9,), 64)
    whole = {"token_ids": [[5], [6]], "n": [1, 2]}
    batches = prompts_lib.to_batches(iter_again([whole, whole]), encoder)
    assert batches.take([0, 3]).columns == {"n": [1, 2]}
    ragged = iter_again([whole, {"token_ids": [[7]]}])
    with pytest.raises(ValueError, match="All batches must have the same col"):
        prompts_lib.to_batches(ragged, encoder)


def iter_again(batches):
    """Batches that are neither a list nor exhausted after one epoch."""

    class Batches:
        def __iter__(self):
            return iter(batches)

    return Batches()


@pytest.mark.parametrize(
    "elements, text",
    [
        (
            [{"q": "a", "answer": "1"}, {"q": "b"}, {"q": "c", "answer": "3"}],
            r"same columns. Received: \['q'\] in row 1",
        ),
        ([{"q": ["a"]}, {"q": ["b"], "answer": [2]}], "in batch 1"),
        (
            [{"q": ["a", "b"], "answer": [1]}, {"q": ["c"], "answer": [2, 3]}],
            "one entry for each prompt",
        ),
    ],
)
def test_ragged_iterables_are_refused(elements, text):
    """Pins: the answers of other rows."""
    with pytest.raises(ValueError, match=text):
        data.prompts_from(iter(elements), "q")
