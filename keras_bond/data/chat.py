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

    The model's answer comes next: if the last turn is the user's, the header of
    that answer follows, and if it is the model's, it is an answer that has
    begun, which is left open and continues where it ends. The text of a system
    turn is put before that of the next user turn, because Gemma has no system
    role. Spaces around a content are removed.

    Args:
        turns: list of dicts with `"role"`, one of `"system"`, `"user"`,
            `"assistant"` or `"model"`, and `"content"`, a str.

    Returns:
        str, without the start token, which tokenizing adds.

    Raises:
        TypeError: if `turns` are not turns, or a content is not a string.
        ValueError: for a role that Gemma does not know, or a system turn
            without a user turn after it.

    Example:

    ```python
    keras_bond.data.render_chat([{"role": "user", "content": "Hello"}])
    # '<start_of_turn>user\\nHello<end_of_turn>\\n<start_of_turn>model\\n'
    ```
    """
    if not is_chat(turns):
        raise TypeError(
            "A conversation must be a list of dicts with `role` and `content`, "
            f"at least one. Received: {turns!r}"
        )
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
    if role == "user":
        return text + f"{START_OF_TURN}model\n"
    return text.removesuffix(f"{END_OF_TURN}\n")


def split_answer(turns):
    """Splits a conversation into a prompt and the model's last answer.

    Args:
        turns: see `render_chat`; the last is the model's.

    Returns:
        `(prompt, answer)`: two str, the answer without its end of turn.

    Raises:
        ValueError: if the last turn is not the model's.
    """
    if not _is_answer(turns[-1]):
        raise ValueError(
            'A conversation to be scored must end with a turn of "assistant". '
            f"Received: role={turns[-1]['role']!r} in the last turn"
        )
    answer = _content(turns[-1]).rstrip()
    if len(turns) == 1:
        return "", answer.lstrip()
    # An answer that has begun continues, perhaps with a space.
    continues = _is_answer(turns[-2])
    return render_chat(turns[:-1]), answer if continues else answer.lstrip()


def _is_answer(turn):
    return turn["role"] in ("assistant", "model")


def _content(turn):
    content = turn.get("content")
    if not isinstance(content, str):
        raise TypeError(
            "A turn of a conversation must have a string as its `content`. "
            f"Received: {turn!r}"
        )
    return content


def _role(turn):
    role = turn["role"]
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(
            "The `role` of a turn must be one of "
            f"{['system', *ROLES]}. Received: role={role!r}"
        )
    return ROLES[role]
