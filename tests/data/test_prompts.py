"""Prompts from whatever a user has."""

import keras
import keras_hub
import numpy as np
import pytest

from keras_bond.data import prompts
from keras_bond.data import table as table_lib
from keras_bond.data.tokenizer import TextTokenizer
from keras_bond.training import standardize
from tests.tiny import make_policy

TEXTS = ["the quick", "fox", "a b c", "lazy dog", "over the"]


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer(make_policy().preprocessor)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return prompts.PromptEncoder(tokenizer, (12,), 64)


class Sequence(keras.utils.PyDataset):
    num_batches = 2

    def __getitem__(self, index):
        return {"prompts": [TEXTS[:3], TEXTS[3:]][index]}


def tf_dataset():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices({"prompts": TEXTS}).batch(3)


def grain_dataset():
    grain = pytest.importorskip("grain")
    rows = [{"prompts": text} for text in TEXTS]
    return grain.MapDataset.source(rows).batch(3)


def torch_loader():
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(TEXTS, batch_size=3)


SOURCES = {
    "list": lambda: TEXTS,
    "array": lambda: np.array(TEXTS),
    "columns": lambda: {"prompts": TEXTS, "answer": list(range(5))},
    "trl columns": lambda: {"prompt": TEXTS},
    "tf.data": tf_dataset,
    "grain": grain_dataset,
    "DataLoader": torch_loader,
    "PyDataset": Sequence,
}


def read(batches):
    """All prompts of an epoch, by row number; the padding left out."""
    texts = []
    for i in range(batches.num_batches):
        (inputs,) = batches[i]
        assert inputs["prompt_ids"].shape == (batches.prompts_per_batch, 12)
        rows = inputs["prompt_index"][inputs["prompt_index"] >= 0].tolist()
        texts += batches.take(rows).prompts
    return texts


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_prompts(encoder, name):
    source = SOURCES[name]()
    in_memory = name in ("list", "array", "columns", "trl columns")
    batches = prompts.to_batches(source, encoder, 3 if in_memory else None)
    assert batches.num_batches == 2 and batches.prompts_per_batch == 3
    for _ in range(2):
        batches.on_epoch_begin()
        assert read(batches) == TEXTS


def test_rows_that_fill_the_last_batch_are_marked(encoder):
    """A smaller batch would compile everything anew."""
    batches = prompts.to_batches(TEXTS, encoder, 3)
    assert batches[1][0]["prompt_index"].tolist() == [3, 4, -1]
    assert prompts.to_batches(TEXTS, encoder, 32).prompts_per_batch == 5


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_batches_of_any_size_have_whole_parts(encoder, factor):
    for size in range(1, 10):
        texts = [TEXTS[i % 5] for i in range(size)]
        batches = prompts.to_batches(texts, encoder, 4, row_factor=factor)
        rows = [batches[i][0] for i in range(batches.num_batches)]
        assert {len(r["prompt_ids"]) % factor for r in rows} == {0}
        index = np.concatenate([r["prompt_index"] for r in rows])
        assert index[index >= 0].tolist() == list(range(size))
        assert batches.is_full == (size >= 4)


def test_shuffling_keeps_text_columns_and_tokens_together(encoder, tokenizer):
    seeds = iter([(1, 0), (1, 5), (1, 0)])
    columns = {"prompts": TEXTS, "answer": list("abcde")}
    batches = prompts.to_batches(columns, encoder, 5, lambda: next(seeds))
    orders = []
    for _ in range(3):
        batches.on_epoch_begin()
        (inputs,) = batches[0]
        table = batches.take(inputs["prompt_index"].tolist())
        decoded, texts = tokenizer.decode(inputs["prompt_ids"]), table.prompts
        assert decoded == texts and sorted(texts) == sorted(TEXTS)
        answers = table.columns["answer"]
        assert [TEXTS["abcde".index(a)] for a in answers] == texts
        orders.append(texts)
    assert orders[0] == orders[2] != orders[1]


def test_tokenized_prompts_are_taken_as_they_are(encoder, tokenizer):
    ids = np.zeros((2, 8), "int32")
    for row, tokens in zip(ids, tokenizer.encode(["fox", "a b c"])):
        row[: len(tokens)] = tokens
    columns = {"token_ids": ids, "padding_mask": ids > 0}
    (inputs,) = prompts.to_batches(columns, encoder, 2)[0]
    np.testing.assert_array_equal(inputs["prompt_ids"][:, :8], ids)
    batches = prompts.to_batches(columns, encoder, 2)
    assert batches.take([0, 1]).prompts == ["fox", "a b c"]


def test_truncation_keeps_the_start_token_and_the_end(tokenizer):
    encoder = prompts.PromptEncoder(tokenizer, (4,), 64, "left")
    (tokens,) = tokenizer.encode(["the quick brown fox"])
    (inputs,) = prompts.to_batches(["the quick brown fox"], encoder)[0]
    assert inputs["prompt_ids"][0].tolist() == [tokens[0], *tokens[-3:]]


def test_text_survives_and_special_tokens_do_not(tokenizer):
    ids = tokenizer.encode(["the quick", ""])
    assert tokenizer.decode([[*ids[0], 1, 4, 0], ids[1]]) == ["the quick", ""]
    assert tokenizer.stop_token_ids() == (1, 4)


@pytest.mark.parametrize(
    "source, batch_size, error, text",
    [
        ("fox", 2, TypeError, "must be a list"),
        ([], 2, ValueError, "at least one prompt"),
        ([1, 2], 2, TypeError, "must be strings"),
        (set(TEXTS), 2, TypeError, r"sorted\(prompts\)"),
        ({"text": TEXTS}, 2, ValueError, '"prompts"'),
        ({"prompts": TEXTS, "a": [1]}, 2, ValueError, "one entry for each"),
        (["fox " * 9], 2, ValueError, "prompt 0 with"),
        (Sequence(), 2, ValueError, "batches of its own"),
        ((x for x in TEXTS), None, TypeError, "iterated again"),
        (7, None, TypeError, "must be a list or array"),
        (
            {"token_ids": [[0, 5]], "padding_mask": [[0, 1]]},
            2,
            ValueError,
            "padded on the right",
        ),
        (
            {"token_ids": [[4, 5]], "padding_mask": [[1]]},
            2,
            ValueError,
            "for the 2 tokens of prompt 0",
        ),
        (
            {"token_ids": ["fox"]},
            2,
            TypeError,
            "list of integers .* token_ids='fox' of prompt 0",
        ),
        ({"token_ids": [[]]}, 2, ValueError, "at least one token"),
        ({"token_ids": [[True]]}, 2, TypeError, "list of integers"),
        ({"prompts": TEXTS, 5: TEXTS}, 2, TypeError, "strings as names"),
        (["fox", "half \ud83d"], 2, ValueError, "valid Unicode.* prompt 1"),
    ],
)
def test_what_is_no_prompt_is_refused(encoder, source, batch_size, error, text):
    with pytest.raises(error, match=text):
        prompts.to_batches(source, encoder, batch_size)


@pytest.mark.parametrize("wrong", [-1, 64, 2**31, -(2**40), 10**30])
def test_ids_outside_of_the_vocabulary_are_named(encoder, wrong):
    """Pins: NaN, or in silence the embedding of another token."""
    message = rf"in \[0, 64\).*Received: token id {wrong} in prompt 1"
    with pytest.raises(ValueError, match=message):
        prompts.to_batches({"token_ids": [[2, 5], [2, wrong, 5]]}, encoder)
    padded = {"token_ids": [[2, wrong]], "padding_mask": [[1, 0]]}
    assert prompts.to_batches(padded, encoder).table.token_ids == [[2]]


def test_a_tokenizer_of_another_preset_is_noticed(tokenizer):
    encoder = prompts.PromptEncoder(tokenizer, (12,), 20)
    with pytest.raises(ValueError, match="must belong together.*prompt 0"):
        prompts.to_batches(["lazy dog"], encoder)


@pytest.mark.parametrize("wrong", [-1, 64, True, 1.5])
def test_stop_tokens_are_in_the_vocabulary(wrong):
    with pytest.raises(ValueError, match="`stop_token_ids` must be"):
        standardize.stop_token_ids_of([1, wrong], None, 64)


def test_prompts_in_memory_are_tokenized_once(tokenizer):
    """Pins: all of them tokenized anew at the start of every epoch."""

    class Counting(TextTokenizer):
        texts = 0

        def encode_bare(self, texts):
            self.texts += len(texts)
            return super().encode_bare(texts)

    counting = Counting(make_policy().preprocessor)
    encoder = prompts.PromptEncoder(counting, (12,), 64)
    batches = prompts.to_batches(TEXTS, encoder, 2, lambda: 1)
    first = batches.fingerprint()
    for _ in range(3):
        batches.on_epoch_begin()
    assert counting.texts == len(TEXTS) and batches.fingerprint() == first


def test_fingerprints_differ_where_prompts_do():
    encoder = prompts.PromptEncoder(None, (9,), 64)
    prompts_of = [[[5, 6], [7]], [[5], [6, 7]], [[5, 6], [8]], [[5, 6]]]
    fingerprints = {
        prompts.to_batches({"token_ids": ids}, encoder).fingerprint()
        for ids in prompts_of
    }
    assert len(fingerprints) == 4


def test_a_written_start_token_is_the_one_that_is_added(tokenizer):
    plain = tokenizer.encode(["the quick"])
    assert tokenizer.encode(["<bos>the quick"]) == plain
    assert plain[0].count(2) == 1
    for text in ["<bos><bos>fox", "<bos>a<bos>b", "<bos> <bos>"]:
        with pytest.raises(ValueError, match="one start token.*prompt 1"):
            tokenizer.encode(["fox", text])
    # A question about the token: its letters, as in `policy.generate`.
    assert len(tokenizer.encode(["a <bos>"])[0]) > 3


def test_start_tokens_of_byte_pair_tokenizers():
    """GPT-2's start token also separates texts."""
    vocabulary = {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}
    gpt2 = keras_hub.models.GPT2Tokenizer(vocabulary, ["a b"])
    tokenizer = TextTokenizer(gpt2)
    texts = ["ab", "<|endoftext|>ab", "a<|endoftext|>b"]
    assert tokenizer.encode(texts) == [[3, 2], [3, 2], [3, 0, 3, 1]]
    with pytest.raises(ValueError, match="one start token"):
        tokenizer.encode(["<|endoftext|><|endoftext|>ab"])


def test_a_start_token_that_is_not_wanted_is_added_as_in_generate():
    preprocessor = make_policy("gemma").preprocessor
    preprocessor.add_start_token = False
    with pytest.warns(UserWarning, match="add_start_token=False"):
        tokenizer = TextTokenizer(preprocessor)
    generated = preprocessor.generate_preprocess(["fox"], sequence_length=12)
    ids = keras.ops.convert_to_numpy(generated["token_ids"])[0]
    (expected,) = tokenizer.encode(["fox"])
    assert ids[: len(expected)].tolist() == expected


def test_truncation_adds_no_start_token(tokenizer):
    encoder = prompts.PromptEncoder(tokenizer, (3,), 64, "left")
    batches = prompts.to_batches({"token_ids": [[5, 6, 7, 8]]}, encoder)
    assert batches.table.token_ids == [[6, 7, 8]]


def test_drawn_ids_without_a_token_have_no_text(tokenizer):
    """As an embedding that is padded to a round size draws them."""
    (ids,) = tokenizer.encode(["the quick"])
    assert tokenizer.decode([[*ids, 60, 63], [61]]) == ["the quick", ""]


def test_strings_need_a_tokenizer():
    with pytest.raises(ValueError, match="no tokenizer"):
        prompts.to_batches(TEXTS, prompts.PromptEncoder(None, (12,), 64))


def test_buckets_cover_their_prompts_and_fill_batches():
    """Whole batches of one bucket; what is left moves to a longer one.

    Pins: a prompt that is lost or comes twice, batches that are not filled.
    """
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 13, 50)
    token_ids = [[5] * length for length in lengths]
    encoder = prompts.PromptEncoder(None, (4, 8, 12), 64)
    batches = prompts.to_batches(
        {"token_ids": token_ids}, encoder, 4, order_seed=lambda: 3
    )
    batches.on_epoch_begin()
    rows, shapes, orders = [], [], []
    for i in range(batches.num_batches):
        batch = encoder.cut(batches[i][0])
        real = batch["prompt_index"] >= 0
        longest = lengths[batch["prompt_index"][real]].max()
        shapes.append(batch["prompt_ids"].shape[1])
        assert shapes[-1] == min(b for b in (4, 8, 12) if b >= longest)
        orders.append(
            set(np.searchsorted((4, 8), lengths[batch["prompt_index"][real]]))
        )
        rows += batch["prompt_index"][real].tolist()
    assert sorted(rows) == list(range(50)) and batches.num_batches == 13
    assert sum(len(kinds) > 1 for kinds in orders) <= 3
    assert shapes != sorted(shapes)


def test_unshuffled_prompts_keep_their_order_whatever_the_buckets():
    encoder = prompts.PromptEncoder(None, (2, 6), 64)
    token_ids = [[5] * length for length in (1, 6, 2, 1)]
    batches = prompts.to_batches({"token_ids": token_ids}, encoder, 2)
    batches.on_epoch_begin()
    assert [batches[i][0]["prompt_index"].tolist() for i in (0, 1)] == [
        [0, 1],
        [2, 3],
    ]
    cut = [encoder.cut(batches[i][0])["prompt_ids"] for i in (0, 1)]
    assert [ids.shape[1] for ids in cut] == [6, 2]


def test_columns_keep_their_gaps_dates_and_tensors():
    """Pins: numbers under masks; dates as nanoseconds; bfloat16 refused."""
    masked, pairs = np.ma.array([1, 2], mask=[0, 1]), [[1, None], [3, 4]]
    days = np.array(["2024-01-02", "2024-01-03"], "datetime64[D]")
    for column, expected in (
        (masked, [1, None]),
        (np.ma.array([[1, 2], [3, 4]], mask=[[0, 1], [0, 0]]), pairs),
        ([1, np.ma.masked], [1, None]),
        (days, days.tolist()),
        (days.astype("datetime64[ns]"), list(days)),
    ):
        assert table_lib.to_list("column", column) == expected
    torch = pytest.importorskip("torch")
    for arguments in ({"dtype": torch.bfloat16}, {"requires_grad": True}):
        tensor = torch.tensor([1.0, 2.0], **arguments)
        assert table_lib.to_list("column", tensor) == [1, 2]


def test_masked_prompts_are_refused():
    ids = np.ma.array([[1, 2], [3, 4]], mask=[[0, 0], [0, 1]])
    for data, text in (
        (np.ma.array(["a", "b"], mask=[0, 1]), "prompt 1"),
        ({"token_ids": ids}, "of prompt 1"),
        ({"token_ids": [[1, 2], [3, 4]], "padding_mask": ids > 0}, "prompt 1"),
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            table_lib.to_table(data)
