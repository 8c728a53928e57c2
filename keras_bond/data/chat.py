"""Conversations as text in Gemma's chat format."""

START_OF_TURN = "<start_of_turn>"
END_OF_TURN = "<end_of_turn>"
ROLES = {"user": "user", "assistant": "model", "model": "model"}


def is_chat(value):
    """Whether a value is a conversation: turns with a role and a content."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(turn, dict) and "role" in turn for turn in value)
    )


def render_chat(turns):
    """Writes a conversation as a prompt in Gemma's chat format.

    If the last turn is the user's, the header of the model's answer follows.
    The text of a system turn is put before that of the next user turn, because
    Gemma has no system role.

    Args:
        turns: list of dicts with `"role"`, one of `"system"`, `"user"`,
            `"assistant"` or `"model"`, and `"content"`, a str.

    Returns:
        str, without the start token, which tokenizing adds.

    Raises:
        TypeError: if a content is not a string.
        ValueError: for a role that Gemma does not know, or a system turn
            without a user turn after it.

    Example:

    ```python
    keras_bond.data.render_chat([{"role": "user", "content": "Hello"}])
    # '<start_of_turn>user\\nHello<end_of_turn>\\n<start_of_turn>model\\n'
    ```
    """
    text, system = "", ""
    for turn in turns:
        content = _content(turn).strip()
        if turn["role"] == "system":
            system += content + "\n\n"
            continue
        role = _role(turn)
        if role == "user":
            content, system = system + content, ""
        text += f"{START_OF_TURN}{role}\n{content}{END_OF_TURN}\n"
    if system:
        raise ValueError(
            "A system turn must come before a turn of the user, which it is "
            f"put into. Received: {turns!r}"
        )
    answers = _role(turns[-1]) == "user"
    return text + f"{START_OF_TURN}model\n" if answers else text


def split_answer(turns):
    """Splits a conversation into a prompt and the model's last answer.

    Args:
        turns: see `render_chat`; the last is the model's.

    Returns:
        `(prompt, answer)`: two str, the answer without its end of turn.

    Raises:
        ValueError: if the last turn is not the model's.
    """
    if ROLES.get(turns[-1]["role"]) != "model":
        raise ValueError(
            'A conversation to be scored must end with a turn of "assistant". '
            f"Received: role={turns[-1]['role']!r} in the last turn"
        )
    prompt = render_chat(turns[:-1]) if turns[:-1] else ""
    return prompt, _content(turns[-1]).strip()


def _content(turn):
    content = turn.get("content")
    if not isinstance(content, str):
        raise TypeError(
            "A turn of a conversation must have a string as its `content`. "
            f"Received: {turn!r}"
        )
    return content


def _role(turn):
    if turn["role"] not in ROLES:
        raise ValueError(
            "The `role` of a turn must be one of "
            f"{['system', *ROLES]}. Received: role={turn['role']!r}"
        )
    return ROLES[turn["role"]]
