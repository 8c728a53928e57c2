"""Chat templates: Jinja as a text, in a file or a folder, and functions."""

import importlib.util
import json

import keras_hub
import pytest

import keras_bond
from keras_bond import data
from keras_bond.data.tokenizer import TextTokenizer
from keras_bond.hugging_face import load
from tests.chats import CHATML
from tests.chats import CHATS
from tests.chats import GEMMA_3
from tests.chats import byte_pairs
from tests.chats import fails
from tests.chats import gemma
from tests.chats import llama_3
from tests.chats import qwen
from tests.chats import turns
from tests.hugging_face.folders import write_tokenizer
from tests.tiny import chat_vocabulary
from tests.tiny import make_policy

pytestmark = pytest.mark.one_backend


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


def test_without_jinja_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fails(ImportError, "install jinja2`.*`chat`", CHATS[0], qwen(), CHATML)
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
