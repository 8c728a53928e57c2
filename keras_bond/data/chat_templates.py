"""Chat templates in Jinja, as Hugging Face models bring them, and functions."""

import datetime
import json
import os
import pathlib
import re

from keras_bond.packages import check_installed
from keras_bond.turns import check_content
from keras_bond.turns import is_answer

# A text that no conversation holds, which shows where an answer is written.
# The space after it shows whether the template strips contents.
PROBE = "keras-bond-probe"
# How markers look that could be tokens, such as `<|im_end|>` and `[/INST]`.
MARKER = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
# The date that the templates of Llama 3 write if none is given.
TODAY = datetime.date(2024, 7, 26)
FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


def read_chat_template(folder):
    """Reads the chat template of a Hugging Face model folder.

    Args:
        folder: str or path. It may hold `chat_template.jinja`, or a
            `chat_template` in `chat_template.json` or
            `tokenizer_config.json`.

    Returns:
        str, the template in Jinja (extra `chat`); `None` if the folder has
        none.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the file cannot be read.

    Example:

    ```python
    template = keras_bond.data.read_chat_template("my_folder") or "auto"
    bond = keras_bond.Bond(policy, reward, chat_template=template, ...)
    ```
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            "`folder` must be a local folder of a Hugging Face model. "
            f"Received: folder={os.fspath(folder)!r}, which is not a folder"
        )
    paths = [pathlib.Path(folder) / name for name in FILES]
    templates = (_read_file(path) for path in paths if path.is_file())
    return next((text for text in templates if text is not None), None)


def _read_file(path):
    try:
        text = path.read_text(encoding="utf-8-sig")
        template = text if path.suffix != ".json" else _in_json(text)
        if not isinstance(template, (str, type(None))):
            raise TypeError(f"chat_template={template!r}")
    except (LookupError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            "The file of a chat template must be Jinja in UTF-8, or JSON with "
            "the template as its `chat_template`. Received: "
            f"{os.fspath(path)!r}, {type(error).__name__}: {error}"
        ) from error
    return template


def _in_json(text):
    content = json.loads(text)
    if not isinstance(content, dict):
        raise TypeError(f"a {type(content).__name__}, not an object")
    template = content.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def standardize(chat_template):
    """Reads a `chat_template=` argument.

    Args:
        chat_template: `"auto"`, a Jinja template, the path of a file or folder
            that holds one, or a function from turns to a str.

    Returns:
        `"auto"`, a Jinja template, or a function.

    Raises:
        TypeError: if it is none of these.
        ValueError: if it is a str, but neither a template nor a path that
            exists, or the file has no template.
    """
    if callable(chat_template):
        return chat_template
    if not isinstance(chat_template, (str, os.PathLike)):
        raise TypeError(
            '`chat_template` must be "auto", a Jinja template or the path of '
            "one, or a function from turns to a str. Received: chat_template="
            f"{chat_template!r} of type {type(chat_template).__name__}"
        )
    if isinstance(chat_template, str):
        if chat_template == "auto" or _is_jinja(chat_template):
            return chat_template
    path = pathlib.Path(chat_template)
    # Of a text that is too long for a path, `path.exists` raises an error.
    if chat_template == "" or not os.path.exists(path):
        raise ValueError(
            '`chat_template` must be "auto", a Jinja template, which has {{ '
            "or {% in it, or the path of a file or folder that exists. "
            f"Received: chat_template={_shortened(chat_template)!r}"
        )
    read = read_chat_template if path.is_dir() else _read_file
    template = read(path)
    if template is None:
        raise ValueError(
            "`chat_template` must be a path that holds a template: a Hugging "
            f"Face folder has one in {' or '.join(FILES)}. "
            f"Received: chat_template={os.fspath(chat_template)!r}, which has "
            "no chat template"
        )
    if not _is_jinja(template):
        raise ValueError(
            "`chat_template` must be a Jinja template, which has {{ or {% in "
            f"it. Received: {template[:60]!r} in {os.fspath(chat_template)!r}"
        )
    return template


def of_tokenizer(tokenizer, chat_template):
    """As `standardize`; `"auto"` takes the tokenizer's own, if it has one."""
    chat_template = standardize(chat_template)
    if chat_template != "auto":
        return chat_template
    return getattr(tokenizer, "chat_template", None) or "auto"


def _shortened(path):
    text = os.fspath(path)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _is_jinja(text):
    return "{{" in text or "{%" in text


class JinjaTemplate:
    """A chat template in Jinja, as in a Hugging Face `tokenizer_config.json`.

    It is rendered in Jinja's sandbox, with what transformers gives a template.
    Only today's date is fixed: a run must not depend on the day.

    Args:
        template: str.
        tokens: dict of str, such as `bos_token`.

    Attributes:
        end_of_turn: str. The marker that ends a turn of the model, or "".
        strips: bool. Whether it removes spaces around a content.

    Raises:
        ImportError: if Jinja is not installed.
        ValueError: if it is not a valid template.
    """

    def __init__(self, template, tokens):
        check_installed("A chat template in Jinja", "chat", ["jinja2"])
        import jinja2

        try:
            self._template = _environment().from_string(template)
        except jinja2.TemplateError as error:
            raise ValueError(
                "`chat_template` must be a valid Jinja template. Received: "
                f"{error}, in a template that begins with {template[:60]!r}"
            ) from error
        self._tokens = tokens
        spaced = f" {PROBE} "
        text = self._render([_turn("user", "?"), _turn("assistant", spaced)])
        found = MARKER.match(text.partition(PROBE)[2].strip())
        self.end_of_turn = found.group() if found else ""
        self.strips = spaced not in text

    def render(self, turns):
        """Writes a conversation up to where the model's answer continues.

        Raises:
            TypeError, ValueError: if the template cannot be rendered, or an
                answer that has begun is not a text, or is not written.
        """
        turns = [dict(turn) for turn in turns]
        # Templates know this role by one name.
        for turn in turns:
            turn["role"] = "assistant" if is_answer(turn) else turn["role"]
        if turns[-1]["role"] != "assistant":
            return self._render(turns, add_generation_prompt=True)
        return _left_open(self._render, turns)

    def _render(self, turns, add_generation_prompt=False):
        try:
            return self._template.render(
                messages=turns,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._tokens,
            )
        # A template is a program, which raises anything.
        except Exception as error:
            raise ValueError(
                "The chat template cannot write this conversation. Received: "
                f"{type(error).__name__}: {error}, for turns of the roles "
                f"{[turn['role'] for turn in turns]}"
            ) from error


class FunctionTemplate:
    """A user's function from turns to the text of a prompt.

    An answer that has begun is left open, whether the function closes it or
    not.

    Args:
        function: `function(turns)` that returns a str.
    """

    end_of_turn = ""
    strips = False

    def __init__(self, function):
        self._function = function

    def render(self, turns):
        """Writes a conversation up to where the model's answer continues.

        Raises:
            TypeError: if the function does not return a str, or an answer
                that has begun is not a text.
            ValueError: if an answer that has begun is not written.
        """
        turns = [dict(turn) for turn in turns]
        if is_answer(turns[-1]):
            return _left_open(self._write, turns)
        return self._write(turns)

    def _write(self, turns):
        text = self._function(turns)
        if not isinstance(text, str):
            raise TypeError(
                "`chat_template` must be a function that returns a str. "
                f"Received: {text!r} of type {type(text).__name__}"
            )
        return text


def _left_open(write, turns):
    """Writes turns up to where an answer that has begun continues."""
    check_content(turns[-1])
    begun = turns[-1]
    probed = {**begun, "content": f"{begun['content']}{PROBE} "}
    head, probe, rest = write([*turns[:-1], probed]).rpartition(PROBE)
    if not probe:
        raise ValueError(
            "`chat_template` must write the answer that has begun. "
            f"Received: a template without the turn {begun!r}"
        )
    text = begun["content"]
    if rest.startswith(" ") or not text.strip():
        return head
    return head.removesuffix(text[len(text.rstrip()) :])


def written_markers(text, turns):
    """What looks like a token in a text and is not of its turns' contents.

    Args:
        text: str. A conversation as a template writes it.
        turns: list of dicts, the conversation.

    Returns:
        list of str.
    """
    said = "\n".join(str(turn.get("content")) for turn in turns)
    found = sorted(set(MARKER.findall(text)))
    return [x for x in found if text.count(x) > said.count(x)]


def _turn(role, content):
    return {"role": role, "content": content}


def _environment():
    """Jinja's sandbox with what templates of Hugging Face models expect."""
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """Writes `{% generation %}` blocks as if they stood alone."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(
                ("name:endgeneration",), drop_needle=True
            )

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def to_json(value, ensure_ascii=False, **arguments):
        return json.dumps(value, ensure_ascii=ensure_ascii, **arguments)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    return environment
