"""Turns of a conversation, and their checks."""

ROLES = ("system", "user", "assistant", "model")
# What other libraries write beside the content, and only some templates read.
UNREAD = (
    "tool_calls",
    "tool_responses",
    "tool_call_id",
    "reasoning",
    "reasoning_content",
    "thinking",
)


def is_chat(value):
    """Whether a value is a conversation: turns with a role and a content."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(turn, dict) and "role" in turn for turn in value)
    )


def check_several(data):
    """Raises an error if data are one conversation instead of a list of them.

    Raises:
        TypeError: saying what to pass.
    """
    # Rows may have a column `role`, but also have a prompt.
    if is_chat(data) and all(set(t) <= {"role", "content"} for t in data):
        raise TypeError(
            "Conversations must be in a list: to pass a single one, put it in "
            f"a list, [conversation]. Received: one conversation, {data!r}"
        )


def is_answer(turn):
    """Whether a turn is the model's."""
    return turn["role"] in ("assistant", "model")


def check_chat(turns):
    """Raises an error if a value is not a conversation.

    Raises:
        TypeError: naming the value.
    """
    if not is_chat(turns):
        raise TypeError(
            "A conversation must be a list of dicts with `role` and `content`, "
            f"at least one. Received: {turns!r}"
        )


def check_turns(turns):
    """Raises an error if a turn has more than a known role and a text.

    Raises:
        TypeError: if a content is not a string.
        ValueError: if a role is unknown, or a turn has tool calls or thoughts.
    """
    for turn in turns:
        check_content(turn)
        role = turn["role"]
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(
                f"The `role` of a turn must be one of {list(ROLES)}: turns of "
                "tools need a Jinja template, such as `chat_template=` the "
                f"model's Hugging Face folder. Received: role={role!r}"
            )


def check_content(turn):
    """Raises an error if a turn holds anything but a text.

    Raises:
        TypeError: if its content is not a string.
        ValueError: if it also has tool calls or thoughts.
    """
    if not isinstance(turn.get("content"), str):
        raise TypeError(
            "A turn of a conversation must have a string as its `content`. "
            f"Received: {turn!r}"
        )
    unread = [name for name in UNREAD if turn.get(name)]
    if unread:
        raise ValueError(
            "A turn must have its whole text as its `content`: write tool "
            "calls and thoughts into it, or pass `chat_template=` a Jinja "
            f"template that reads them. Received: a turn with {unread}"
        )
