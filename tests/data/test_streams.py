"""Iterables without a known length, and tables of other libraries."""

import itertools

import keras
import numpy as np
import pytest

import keras_bond
from keras_bond import data
from keras_bond.data import prompts
from keras_bond.data import streams
from keras_bond.data.tokenizer import TextTokenizer
from tests.tiny import chat_vocabulary
from tests.tiny import make_policy

TEXTS = ["the quick", "fox", "a b c", "lazy dog", "over the"]
ROWS = [{"prompt": text, "n": i} for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def encoder():
    tokenizer = TextTokenizer(make_policy().preprocessor)
    return prompts.PromptEncoder(tokenizer, (12,), 64)


class Iterable:
    """Starts anew each time, and has no length."""

    def __init__(self, start):
        self.start = start

    def __iter__(self):
        return iter(self.start())


class Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        return {"prompts": [TEXTS[(3 * index + i) % 5] for i in range(3)]}


def counted(count):
    for i in itertools.count():
        assert i < count, "read further than needed"
        yield {"prompts": [TEXTS[(3 * i + j) % 5] for j in range(3)]}


def single_rows(count):
    for i in itertools.count():
        assert i < count, "read further than needed"
        yield ROWS[i % 5]


def grain_rows(batch=False):
    grain = pytest.importorskip("grain")
    rows = grain.MapDataset.source(ROWS).repeat()
    return rows.batch(3) if batch else rows


def tf_batches(repeat):
    tf = pytest.importorskip("tensorflow")
    dataset = tf.data.Dataset.from_tensor_slices({"prompts": TEXTS})
    return dataset.batch(3).repeat() if repeat else dataset.batch(3)


def tf_unknown():
    tf = pytest.importorskip("tensorflow")
    return tf_batches(True).filter(lambda batch: tf.constant(True))


def hugging_face(batch=False, repeat=False):
    datasets = pytest.importorskip("datasets")
    rows = datasets.IterableDataset.from_generator(lambda: iter(ROWS))
    rows = rows.repeat(None) if repeat else rows
    return rows.batch(3) if batch else rows


def torch_loader():
    torch = pytest.importorskip("torch")

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self):
            return itertools.cycle(ROWS)

    return torch.utils.data.DataLoader(Rows(), batch_size=3)


STREAMS = {
    "endless batches": lambda: Iterable(lambda: counted(9)),
    "endless rows": lambda: Iterable(lambda: single_rows(20)),
    "batches that end": lambda: Iterable(lambda: [TEXTS[:3], TEXTS[3:]]),
    "rows that end": lambda: Iterable(lambda: ROWS),
    "strings": lambda: Iterable(lambda: TEXTS),
    "lists of rows": lambda: Iterable(lambda: [ROWS[:3], ROWS[3:]]),
    "PyDataset": Endless,
    "grain rows": grain_rows,
    "grain batches": lambda: grain_rows(batch=True),
    "tf.data": lambda: tf_batches(True),
    "tf.data of unknown length": tf_unknown,
    "DataLoader": torch_loader,
    "Hugging Face": hugging_face,
    "Hugging Face, endless": lambda: hugging_face(repeat=True),
    "Hugging Face, batches": lambda: hugging_face(batch=True, repeat=True),
}
UNBATCHED = (
    "endless rows",
    "rows that end",
    "strings",
    "grain rows",
    "Hugging Face",
    "Hugging Face, endless",
)


@pytest.mark.parametrize("name", STREAMS)
def test_with_steps_data_are_read_as_they_are_needed(encoder, name):
    """Pins: an endless iterable that is read for ever; lost prompts."""
    size = 3 if name in UNBATCHED else None
    stream = prompts.to_batches(STREAMS[name](), encoder, size, steps=2)
    assert stream.is_endless and stream.prompts_per_batch == 3
    texts = []
    for i in [0, 1, 2, 3, 0]:
        indices = stream[i][0]["prompt_index"].tolist()
        texts += stream.take(indices).prompts
    assert texts == (TEXTS * 3)[:12] + TEXTS[:3]


@pytest.mark.parametrize("batch", [False, True])
def test_iterable_data_sets_of_hugging_face_are_read(encoder, batch):
    size = None if batch else 3
    batches = prompts.to_batches(hugging_face(batch), encoder, size)
    for _ in range(2):
        batches.on_epoch_begin()
        assert batches.num_batches == 2 and batches.prompts_per_batch == 3
        assert batches.table.prompts == TEXTS
        assert batches.table.columns == {"n": list(range(5))}
    table = data.prompts_from(hugging_face(batch), "prompt")
    assert table == {"prompts": TEXTS, "n": list(range(5))}


class FrameOfPandas:
    """The methods of a pandas data frame that are used."""

    columns = ["prompt", "n"]
    shape = (5, 2)

    def to_dict(self, orient="dict"):
        if orient != "list":
            raise TypeError(f"orient={orient}")
        return {name: [row[name] for row in ROWS] for name in self.columns}

    def __array__(self, dtype=None, copy=None):
        return np.array([[row["prompt"], row["n"]] for row in ROWS], object)


class FrameOfPolars(FrameOfPandas):
    def to_dict(self, *, as_series=True):
        assert not as_series
        return super().to_dict("list")


def pandas():
    return pytest.importorskip("pandas").DataFrame(ROWS)


def polars():
    return pytest.importorskip("polars").DataFrame(ROWS)


def pyarrow():
    return pytest.importorskip("pyarrow").Table.from_pylist(ROWS)


TABLES = {
    "pandas": pandas,
    "polars": polars,
    "pyarrow": pyarrow,
    "pyarrow batch": lambda: pyarrow().to_batches()[0],
    "like pandas": FrameOfPandas,
    "like polars": FrameOfPolars,
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read(encoder, name):
    batches = prompts.to_batches(TABLES[name](), encoder, 5)
    assert batches.table.prompts == TEXTS
    assert batches.table.columns == {"n": list(range(5))}
    assert {type(n) for n in batches.table.columns["n"]} == {int}
    stream = Iterable(lambda: [TABLES[name]()])
    assert prompts.to_batches(stream, encoder).table.prompts == TEXTS
    table = data.prompts_from(TABLES[name](), template="{n} {prompt}")
    assert table["prompts"][1] == "1 fox"


@pytest.mark.parametrize("make", [pandas, polars, pyarrow])
def test_tables_hold_conversations_and_pairs(encoder, make):
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    frame = type(make())
    make = getattr(frame, "from_pydict", frame)
    table = make({"prompt": chats})
    policy = make_policy(proto=chat_vocabulary())
    tokenizer = TextTokenizer(policy.preprocessor)
    long = prompts.PromptEncoder(tokenizer, (99,), 200)
    assert prompts.to_batches(table, long).table.conversations == chats
    columns = {"chosen": TEXTS[:2], "rejected": TEXTS[2:4]}
    assert data.to_pairs(make(columns)) == data.to_pairs(columns)
    model = keras_bond.RewardModel(make_policy(num_layers=1), max_length=24)
    x, _ = model._standardize(make(columns), None)
    assert x["token_ids"].shape[:2] == (2, 2)


def test_columns_of_other_libraries_are_lists(encoder):
    for make, name in ((pandas, "to_dict"), (pyarrow, "to_pydict")):
        table = make()
        columns = {"prompts": table["prompt"], "n": table["n"]}
        batches = prompts.to_batches(columns, encoder, 5)
        assert batches.table.prompts == TEXTS, name
        assert batches.table.columns == {"n": list(range(5))}


def test_columns_of_one_name_are_refused(encoder):
    pa = pytest.importorskip("pyarrow")
    column = pa.array(TEXTS)
    table = pa.Table.from_arrays([column, column], names=["prompt", "prompt"])
    with pytest.raises(ValueError, match="names of their own"):
        prompts.to_batches(table, encoder)


def test_what_is_no_stream_is_named(encoder):
    with pytest.raises(TypeError, match="iterated again"):
        prompts.to_batches(single_rows(9), encoder, steps=2)
    with pytest.raises(ValueError, match="batches of its own"):
        prompts.to_batches(Iterable(lambda: counted(9)), encoder, 3, steps=2)
    empty = prompts.to_batches(Iterable(list), encoder, steps=2)
    with pytest.raises(ValueError, match="at least one prompt"):
        empty[0]
    endless = tf_batches(True)
    with pytest.raises(ValueError, match="must end"):
        prompts.to_finite_batches(endless, encoder, 3)
    columns = Iterable(lambda: [{"prompt": "a"}, {"prompt": "b", "n": 1}])
    with pytest.raises(ValueError, match="same columns"):
        prompts.to_batches(columns, encoder, 2, steps=2)[0]
    ids = Iterable(lambda: [{"token_ids": [[2, 5]]}, {"token_ids": [[2, 64]]}])
    with pytest.raises(ValueError, match="token id 64 in prompt 1"):
        prompts.to_batches(ids, encoder, steps=9)[1]


def test_finite_data_sets_of_any_kind_get_completions(encoder):
    """Pins: a batched data set that `generate` did not read."""
    for name in ("batches that end", "rows that end", "Hugging Face"):
        batches = prompts.to_finite_batches(STREAMS[name](), encoder, 2)
        assert batches.table.prompts == TEXTS and batches.num_batches == 3
    batches = prompts.to_finite_batches(tf_batches(False), encoder, 4)
    assert batches.table.prompts == TEXTS


def test_wrong_prompts_of_iterables_are_named_by_their_row():
    for elements in ([["a"], "b", [3]], [["a", "b"], [3]]):
        with pytest.raises(TypeError, match="3 of type int as prompt 2"):
            list(streams.tables_of(iter(elements)))
