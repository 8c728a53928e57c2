"""Conversations in the format of the model, against the families' templates."""

import keras_hub
import pytest

from keras_bond import data
from keras_bond.data.prompts import PromptEncoder
from keras_bond.data.prompts import to_batches
from keras_bond.data.tokenizer import TextTokenizer
from tests.chats import CHATS
from tests.chats import FAMILIES
from tests.chats import GEMMA_3
from tests.chats import THOUGHTS
from tests.chats import byte_pairs
from tests.chats import fails
from tests.chats import gemma
from tests.chats import gemma_4
from tests.chats import llama_3
from tests.chats import qwen
from tests.chats import smollm2
from tests.chats import turns

pytestmark = pytest.mark.one_backend


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    make, template, stops = FAMILIES[request.param]
    return request.param, make(), template, stops


def test_each_family_is_written_as_by_its_template(family):
    """And the start token is not written twice, though templates write it."""
    name, tokenizer, template, _ = family
    by_markers = TextTokenizer(tokenizer)
    by_template = TextTokenizer(tokenizer, template)
    thoughts = turns("Hi", THOUGHTS.get(name, "Yes?"), "Why?")
    for chat in [*CHATS, thoughts]:
        text = data.render_chat(chat, tokenizer)
        assert data.render_chat(chat, tokenizer, template) == text
        (ids,) = by_markers.encode([by_markers.render(chat)])
        assert by_template.encode([by_template.render(chat)]) == [ids]
        assert by_markers.encode([text]) == [ids]
        assert ids[: len(by_markers.start)] == by_markers.start
        assert ids[1:2] != by_markers.start
    assert "hm" not in data.render_chat(thoughts, tokenizer)
    # Of an answer that has begun, the thoughts are kept.
    assert ("hm" in data.render_chat(thoughts[:2], tokenizer)) == (
        name in THOUGHTS
    )


def test_markers_are_single_tokens_and_stop(family):
    name, tokenizer, template, stops = family
    for chosen in ("auto", template):
        text = TextTokenizer(tokenizer, chosen)
        wanted = sorted(int(tokenizer.token_to_id(stop)) for stop in stops)
        assert list(text.stop_token_ids()) == wanted
        # Two turns of the user and one answer are closed. Gemma 1 to 3 have
        # no turns of the system.
        (ids,) = text.encode([text.render(CHATS[2])])
        folds = name in ("Gemma", "Gemma 3")
        assert ids.count(text.end_of_turn_token_id()) == 4 - folds


@pytest.mark.parametrize(
    "make, kind",
    [(gemma, "Gemma3"), (smollm2, "Llama3"), (llama_3, "Llama3")],
    ids=["Gemma 3", "SmolLM2", "Llama 3"],
)
def test_policys_own_generate_reads_the_same_tokens(make, kind):
    """KerasHub writes a start token before every prompt."""
    tokenizer = make()
    kind = getattr(keras_hub.models, f"{kind}CausalLMPreprocessor")
    preprocessor = kind(tokenizer, sequence_length=256)
    text = TextTokenizer(tokenizer)
    (ids,) = text.encode([text.render(CHATS[1])])
    read = preprocessor.generate_preprocess(
        [data.render_chat(CHATS[1], preprocessor)]
    )["token_ids"]
    assert [int(i) for i in read[0][: len(ids)]] == ids


def test_formats_by_hand():
    """Against the documentation of the models."""
    chat = turns("Be short.", "Hi")
    assert data.render_chat(chat, gemma()) == (
        "<start_of_turn>user\nBe short.\n\nHi<end_of_turn>\n"
        "<start_of_turn>model\n"
    )
    assert data.render_chat(chat, gemma_4()) == (
        "<|turn>system\nBe short.<turn|>\n<|turn>user\nHi<turn|>\n"
        "<|turn>model\n"
    )
    assert data.render_chat(chat, llama_3()) == (
        "<|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    expected = (
        "<|im_start|>system\nBe short.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert data.render_chat(chat, qwen()) == expected
    # KerasHub writes SmolLM2's first marker itself, as its start token.
    start = "<|im_start|>"
    assert data.render_chat(chat, smollm2()) == expected.removeprefix(start)


def test_large_gemma_4_begins_without_a_thought():
    """As its documentation wants it, unless the system turn asks to think."""

    class Backbone:
        hidden_size_per_layer_input = 0

    class Policy:
        preprocessor = gemma_4()
        backbone = Backbone()

    empty = "<|turn>model\n<|channel>thought\n<channel|>"
    assert data.render_chat(CHATS[1], Policy()).endswith(empty)
    assert data.render_chat(CHATS[3], Policy()).endswith("model\nOnce upon")
    thinking = [{"role": "system", "content": "<|think|>"}, *CHATS[0]]
    assert data.render_chat(thinking, Policy()).endswith("<|turn>model\n")
    Backbone.hidden_size_per_layer_input = 256
    assert data.render_chat(CHATS[1], Policy()).endswith("<|turn>model\n")


BAD_CHATS = [
    ([{"role": "tool", "content": "a"}], ValueError, "role='tool'"),
    ([{"role": "user", "content": None}], TypeError, "a string as its"),
    ([{"role": "user"}], TypeError, "a string as its"),
    ([{"role": [], "content": "a"}], ValueError, r"role=\[\]"),
    ([], TypeError, "at least one"),
    ("Hi", TypeError, "must be a list of dicts"),
    (
        [{"role": "system", "content": "a"}],
        ValueError,
        "must come before a turn of the user",
    ),
    (
        [{**CHATS[0][0], "tool_calls": [1]}],
        ValueError,
        r"with \['tool_calls'\]",
    ),
    (
        [*CHATS[0], {**CHATS[1][1], "reasoning_content": "hm"}],
        ValueError,
        r"with \['reasoning_content'\]",
    ),
]


@pytest.mark.parametrize("chat, error, text", BAD_CHATS)
def test_what_is_no_conversation_is_named(chat, error, text):
    fails(error, text, chat, gemma())


def test_formats_of_other_models_are_refused():
    """Pins: a Llama that silently read Gemma's markers in pieces."""
    other = gemma(markers=("<end_of_turn>",))
    fails(ValueError, "`chat_template=` the template", CHATS[0], other)
    text = TextTokenizer(llama_3(), GEMMA_3)
    with pytest.raises(ValueError, match="ends turns with '<end_of_turn>'"):
        text.stop_token_ids()
    pieces = byte_pairs(
        keras_hub.models.Qwen3Tokenizer,
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    )
    fails(ValueError, "'<|im_start|>', which a Qwen3", CHATS[0], pieces)


def test_what_has_no_tokenizer_is_named():
    class WithoutPreprocessor:
        preprocessor = None

    class Trainer:
        tokenizer = TextTokenizer(qwen())

    for value in (None, "Hi", WithoutPreprocessor(), Trainer()):
        fails(TypeError, "for a trainer pass `bond.policy`", CHATS[0], value)


def test_one_conversation_is_not_a_list_of_them():
    encoder = PromptEncoder(TextTokenizer(gemma()), (64,), 999)
    with pytest.raises(TypeError, match="put it in a list"):
        to_batches(CHATS[1], encoder)
    rows = [{"role": "a", "prompt": "Hi"}] * 2
    assert to_batches(rows, encoder).table.columns == {"role": ["a", "a"]}


def test_spaces_before_an_answer_are_not_scored_with_it():
    """The header of Gemma's answers ends in a new line of its own."""
    encoder = PromptEncoder(TextTokenizer(gemma()), (64,), 999)
    (read,) = to_batches([turns("Hi", "\n")], encoder).table.conversations
    assert read[-1]["content"] == ""
