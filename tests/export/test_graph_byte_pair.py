"""Byte-pair tokenizers in the graph against the library `tokenizers`."""

import random
import types

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from tokenizers import pre_tokenizers

from keras_bond.export.byte_pair import graph_spec
from keras_bond.export.serving.byte_pair import GraphBytePair
from tests.hugging_face.folders import make_tokenizer

pytestmark = pytest.mark.one_backend

LLAMA_3 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
BYTES = pre_tokenizers.ByteLevel(False, use_regex=False)
GPT_2 = pre_tokenizers.ByteLevel(False)


def split(pattern):
    pattern = tokenizers.Regex(pattern)
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), BYTES]
    )


SPLITS = {
    "gpt_2": GPT_2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), GPT_2]),
    "llama_3": split(LLAMA_3),
    "qwen": split(LLAMA_3.replace("{1,3}", "")),
}
CHARACTERS = (
    "abfox I'M's  \n\r\t12349.,!<|>éß日한🦊\u00a0\u2009\u3000\u0301²Ⅷ/_"
)
TEXTS = [
    "",
    " ",
    "it's 1234567  foxes\n\n  I'LL",
    "a\n\n\nb",
    "!\n fox",
    " \n fox \n",
    "x!</s>y",
    "<s>user\nthe fox<|im_end|>\n",
    "e\u0301",
    "fox   ",
]


def wrapped(library):
    return types.SimpleNamespace(_tokenizer=library)


def make_texts():
    generator = random.Random(0)
    return TEXTS + [
        "".join(generator.choices(CHARACTERS, k=generator.randint(1, 20)))
        for _ in range(150)
    ]


@pytest.mark.parametrize("name", SPLITS)
def test_ids_and_texts_are_those_of_the_library(name):
    """Also of a text that is whole in the vocabulary, and of NFC."""
    is_qwen = name == "qwen"
    library = make_tokenizer(ignore_merges=name == "llama_3")
    library.pre_tokenizer = SPLITS[name]
    if is_qwen:
        library.normalizer = tokenizers.normalizers.NFC()
    graph = GraphBytePair(graph_spec(wrapped(library)))
    tokenize = tf.function(
        graph.tokenize, input_signature=[tf.TensorSpec((None,), tf.string)]
    )
    texts = make_texts()
    expected = [encoding.ids for encoding in library.encode_batch(texts)]
    assert tokenize(tf.constant(texts)).to_list() == expected
    # Bytes that are no text, too.
    ids = np.random.default_rng(0).integers(0, 290, size=(100, 6))
    found = graph.detokenize(tf.RaggedTensor.from_tensor(ids)).numpy()
    assert [text.decode() for text in found] == library.decode_batch(
        ids.tolist(), skip_special_tokens=False
    )


def test_what_a_graph_cannot_compute_is_named():
    library = make_tokenizer()
    for part, name in (
        (split(r"\p{L}+(?=\d)"), r"\(\?="),
        (pre_tokenizers.Metaspace(), "a split that does not end with bytes"),
        (pre_tokenizers.ByteLevel(True), "add_prefix_space"),
    ):
        library.pre_tokenizer = part
        with pytest.raises(ValueError, match=name):
            graph_spec(wrapped(library))
    library.pre_tokenizer = GPT_2
    library.normalizer = tokenizers.normalizers.Lowercase()
    with pytest.raises(ValueError, match="the normalizer Lowercase"):
        graph_spec(wrapped(library))
