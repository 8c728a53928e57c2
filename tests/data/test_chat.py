"""Conversations in the format of the model, against the families' templates.

The templates are those of the published models, reduced to text.
"""

import importlib.util
import json

import keras_hub
import pytest

import keras_bond
from keras_bond import data
from keras_bond.data.prompts import PromptEncoder
from keras_bond.data.prompts import to_batches
from keras_bond.data.tokenizer import TextTokenizer
from keras_bond.hugging_face import load
from tests.hugging_face.folders import write_tokenizer
from tests.tiny import chat_vocabulary
from tests.tiny import make_policy

BYTES = [chr(i) for i in [*range(33, 127), *range(161, 173), *range(174, 324)]]


def byte_pairs(kind, *special, **arguments):
    """A KerasHub tokenizer of bytes, with special tokens."""
    tokens = [*special, *BYTES, "th"]
    return kind(
        vocabulary={token: i for i, token in enumerate(tokens)},
        merges=["t h"],
        **arguments,
    )


def gemma(kind="Gemma3", markers=("<start_of_turn>", "<end_of_turn>")):
    options = {
        "Gemma": {},
        "Gemma3": {"has_vision_tokens": False},
        "Gemma4": {"has_vision_tokens": False, "has_video_tokens": False},
    }
    make = getattr(keras_hub.models, f"{kind}Tokenizer")
    return make(proto=chat_vocabulary(markers), **options[kind])


def gemma_4():
    return gemma("Gemma4", ("<|turn>", "<turn|>", "<|channel>", "<channel|>"))


def llama_3():
    tokens = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return byte_pairs(
        keras_hub.models.Llama3Tokenizer,
        "<|begin_of_text|>",
        "<|end_of_text|>",
        *tokens,
        misc_special_tokens=set(tokens),
    )


def smollm2():
    """As KerasHub's converter makes it, with the turns' marker as the start."""
    tokens = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return byte_pairs(
        keras_hub.models.Llama3Tokenizer,
        *tokens,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        misc_special_tokens=set(tokens),
    )


def qwen(name="Qwen", *more):
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more]
    make = getattr(keras_hub.models, f"{name}Tokenizer")
    return byte_pairs(make, *tokens, unsplittable_tokens=tokens)


def qwen_3():
    return qwen("Qwen3", "<think>", "</think>")


LLAMA_3 = (
    "{% for message in messages %}{{ bos_token if loop.first }}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN_3 = CHATML.replace(
    "m.content",
    "(m.content if m.role == 'user' or loop.last else "
    "m.content.split('</think>')[-1].lstrip('\\n'))",
)
GEMMA_3 = """
{{- bos_token }}
{%- set prefix = '' %}
{%- if messages[0].role == 'system' %}
    {%- set prefix = messages[0].content + '\n\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate') }}
    {%- endif %}
    {%- set role = 'model' if m.role == 'assistant' else m.role %}
    {{- '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}
    {{- m.content | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
GEMMA_4 = """
{%- macro strip_thinking(text) %}
    {%- set ns = namespace(kept='') %}
    {%- for part in text.split('<channel|>') %}
        {%- set ns.kept = ns.kept + part.split('<|channel>')[0] %}
    {%- endfor %}
    {{- ns.kept | trim }}
{%- endmacro %}
{{- bos_token }}
{%- for m in messages %}
    {%- set role = 'model' if m.role == 'assistant' else m.role %}
    {{- '<|turn>' + role + '\n' }}
    {%- if role == 'model' and not loop.last %}
        {{- strip_thinking(m.content) }}
    {%- else %}
        {{- m.content | trim }}
    {%- endif %}
    {{- '<turn|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"""

# A tokenizer, its template, its stop tokens.
FAMILIES = {
    "Gemma": (lambda: gemma("Gemma"), GEMMA_3, {"<eos>", "<end_of_turn>"}),
    "Gemma 3": (gemma, GEMMA_3, {"<eos>", "<end_of_turn>"}),
    "Gemma 4": (gemma_4, GEMMA_4, {"<eos>", "<turn|>"}),
    "Llama 3": (llama_3, LLAMA_3, {"<|end_of_text|>", "<|eot_id|>"}),
    "SmolLM2": (smollm2, CHATML, {"<|im_end|>"}),
    "Qwen": (qwen, CHATML, {"<|endoftext|>", "<|im_end|>"}),
    "Qwen 3": (qwen_3, QWEN_3, {"<|im_end|>"}),
}


def turns(*contents):
    roles = ("user", "assistant") * len(contents)
    if len(contents) > 1 and contents[0] == "Be short.":
        roles = ("system", *roles)
    return [{"role": r, "content": c} for r, c in zip(roles, contents)]


THOUGHTS = {
    "Gemma 4": "<|channel>thought\nhm\n<channel|>Yes?",
    "Qwen 3": "<think>\nhm\n</think>\n\nYes?",
}
CHATS = [
    turns("Hi"),
    turns(" Hi ", " Yes? ", "Why?\n"),
    turns("Be short.", "Hi", "Yes?", "Why?"),
    turns("Hi", "Once upon"),
    turns("Be short.", "Hi", " Once upon "),
    turns("Hi", ""),
]


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


def test_a_template_is_a_text_a_file_a_folder_or_a_function(tmp_path):
    """And the folder of a Hugging Face model names it in several ways."""
    tokenizer = qwen()
    text = data.render_chat(CHATS[1], tokenizer)
    assert data.read_chat_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    others = [{"name": "tool_use", "template": "{{ 1 }}"}]
    default = {"name": "default", "template": CHATML}
    for template in (CHATML, [*others, default]):
        config.write_text(json.dumps({"chat_template": template}))
        assert data.read_chat_template(tmp_path) == CHATML
        for path in (tmp_path, str(tmp_path), config):
            assert data.render_chat(CHATS[1], tokenizer, path) == text
    config.write_text(json.dumps({"chat_template": others}))
    assert data.read_chat_template(tmp_path) is None
    file = tmp_path / "chat_template.jinja"
    file.write_text(CHATML)
    assert data.render_chat(CHATS[1], tokenizer, str(file)) == text
    assert data.render_chat(CHATS[1], tokenizer, tmp_path) == text
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert data.render_chat(CHATS[0], tokenizer) == "Hi"
    assert TextTokenizer(tokenizer, CHATML).chat_template == CHATML


def test_a_function_writes_the_turns():
    def plain(turns):
        return "\n".join(turn.pop("content") for turn in turns)

    text = TextTokenizer(qwen(), plain)
    assert text.render(CHATS[1]) == " Hi \n Yes? \nWhy?\n"
    assert text.stop_token_ids() == (0, 2)
    with pytest.raises(TypeError, match="function that returns a str"):
        data.render_chat(CHATS[0], qwen(), lambda turns: None)


def test_templates_get_what_transformers_gives_them():
    """Loops that break, JSON, marked answers, a date that stays the same."""
    template = (
        "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}"
        "{% generation %}{{ {'a': m.content} | tojson }}{% endgeneration %}"
        "{% endfor %}{{ strftime_now('%d %b %Y') }}{{ tools is none }}"
    )
    text = data.render_chat(CHATS[1], qwen(), template)
    assert text == '{"a": " Hi "}26 Jul 2024True'


def fails(error, text, *arguments, **keywords):
    with pytest.raises(error, match=text):
        data.render_chat(*arguments, **keywords)


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


def test_what_is_no_template_is_named(tmp_path):
    fails(TypeError, "`chat_template` must be", CHATS[0], qwen(), None)
    fails(
        ValueError, "path of a file or folder", CHATS[0], qwen(), "chat.jinja"
    )
    fails(ValueError, "has no chat template", CHATS[0], qwen(), tmp_path)
    fails(ValueError, "valid Jinja template", CHATS[0], qwen(), "{% if %}")
    fails(ValueError, "Roles must alternate", CHATS[0] * 2, gemma(), GEMMA_3)
    fails(
        ValueError,
        "SecurityError",
        CHATS[0],
        qwen(),
        "{{ ''.__class__.__mro__ }}",
    )
    fails(
        ValueError, "must write the answer", CHATS[3], qwen(), "{{ bos_token }}"
    )


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


def test_without_jinja_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fails(ImportError, r"keras-bond\[chat\]", CHATS[0], qwen(), CHATML)
    assert data.render_chat(CHATS[0], qwen())


def test_markers_that_the_vocabulary_lacks_are_not_read_in_pieces():
    """Only those of known formats: `[INST]` of Llama 2 is plain text."""
    ended = CHATML.replace("<|im_end|>", "' + eos_token + '")
    fails(ValueError, "'<|im_start|>', which a Ll", CHATS[0], llama_3(), ended)
    plain = "{{ '[INST] ' + messages[0].content + ' [/INST]' + eos_token }}"
    assert "[INST] Hi" in data.render_chat(CHATS[0], llama_3(), plain)
    # Also those of a turn of the system, which no probe shows.
    system = "{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"
    system += "{% if messages[0].role == 'system' %}<|im_end|>{% endif %}"
    assert data.render_chat(CHATS[0], llama_3(), system).startswith("Hi<")
    fails(ValueError, "'<|im_end|>', which", CHATS[2], llama_3(), system)


def test_markers_of_a_function_are_not_read_in_pieces():
    """Those that it writes itself; a user may write what they like."""

    def chatml(turns):
        return "".join(f"<|im_start|>{t['content']}<|im_end|>" for t in turns)

    fails(ValueError, "'<|im_end|>', which a Ll", CHATS[0], llama_3(), chatml)
    assert "<|im_end|>" in data.render_chat(CHATS[0], qwen(), chatml)
    pieces = byte_pairs(
        keras_hub.models.Qwen3Tokenizer,
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    )
    fails(ValueError, "in pieces", CHATS[0], pieces, chatml)
    quoted = turns("What is <|im_end|>, and [/INST]?")
    for template in (lambda turns: turns[0]["content"], "auto"):
        text = data.render_chat(quoted, llama_3(), template)
        assert "<|im_end|>, and [/INST]?" in text


@pytest.mark.parametrize(
    "template, text", [(CHATML, "<|im_end|>"), ("{{ bad", "valid Jinja")]
)
def test_a_wrong_template_is_refused_when_a_trainer_is_made(template, text):
    with pytest.raises(ValueError, match=text.replace("|", r"\|")):
        keras_bond.Bond(
            make_policy(num_layers=1, proto=chat_vocabulary()),
            lambda prompts, completions: [0.0] * len(prompts),
            max_prompt_length=8,
            max_completion_length=4,
            chat_template=template,
            stop_token_ids=(1,),
        )


def test_a_function_that_closes_every_turn_leaves_a_begun_answer_open():
    def closing(turns):
        return "".join(f"{t['role']}: {t['content']};" for t in turns)

    assert data.render_chat(CHATS[3], qwen(), closing) == (
        "user: Hi;assistant: Once upon"
    )
    assert data.render_chat(CHATS[0], qwen(), closing) == "user: Hi;"
    fails(ValueError, "must write the", CHATS[3], qwen(), lambda turns: "a")


def folder_tokenizer(path, **tokens):
    write_tokenizer(path, **tokens)
    (path / "config.json").write_text('{"eos_token_id": [2, 3, 0]}')
    return load.load_tokenizer(path)


def test_a_folders_tokens(tmp_path):
    """All of its end tokens stop; its template may write a start token."""
    tokenizer = folder_tokenizer(tmp_path, add_bos_token=False)
    assert TextTokenizer(tokenizer).stop_token_ids() == (0, 2, 3)
    copy = type(tokenizer).from_config(tokenizer.get_config())
    assert copy.bos_token == "<s>"
    text = TextTokenizer(tokenizer, "{{ bos_token + messages[0].content }}")
    assert text.start == []
    assert text.render(CHATS[0]) == "<s>Hi"


@pytest.mark.parametrize("template", ["{{ bad", "{{ raise_exception('no') }}"])
def test_plain_strings_do_not_need_the_tokenizers_own_template(template):
    tokenizer = qwen()
    tokenizer.chat_template = template
    text = TextTokenizer(tokenizer)
    assert text.stop_token_ids() == (0, 2)
    assert text.decode(text.encode(["Hi"])) == ["Hi"]
    fails(ValueError, "template", CHATS[0], tokenizer)
    with pytest.raises(ValueError, match="template"):
        TextTokenizer(qwen(), template).stop_token_ids()


def test_plain_strings_do_not_need_jinja(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tokenizer = qwen()
    tokenizer.chat_template = CHATML
    assert TextTokenizer(tokenizer).stop_token_ids() == (0, 2)
    fails(ImportError, "jinja2", CHATS[0], tokenizer)


@pytest.mark.parametrize(
    "name, content, text",
    [
        ("a.json", b"{", "a.json', JSONDecodeError"),
        ("a.json", b"[1]", "a.json', TypeError: a list"),
        ("a.json", b'{"chat_template": 5}', "a.json', .*chat_template=5"),
        ("a.json", b'{"chat_template": [5]}', "a.json', TypeError"),
        ("a.jinja", "{{ 'é' }}".encode("latin-1"), "a.jinja', UnicodeDecode"),
        ("a.jinja", b"", "must be a Jinja template.*a.jinja"),
        ("a.jinja", b"constant", "must be a Jinja template.*a.jinja"),
    ],
)
def test_files_without_a_template_are_named(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    fails(ValueError, text, CHATS[0], qwen(), tmp_path / name)


def test_paths_of_templates(tmp_path):
    for path in ("", "a" * 300, "a" * 9999):
        fails(ValueError, "path of a file or folder", CHATS[0], qwen(), path)
    file = tmp_path / "a.jinja"
    file.write_text("{{ messages[0].content }}", encoding="utf-8-sig")
    assert data.render_chat(CHATS[0], qwen(), file) == "Hi"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.read_chat_template(tmp_path / "nowhere")


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
