"""Checks of arguments that every floor has."""


def check_count(name, value, least):
    """Refuses what is no integer of at least `least`.

    Raises:
        ValueError: naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"`{name}` must be an integer of at least {least}. "
            f"Received: {name}={value!r}"
        )
