"""Argument checks shared by the whole package."""

import math
import numbers


def is_number(value, low=-math.inf, high=math.inf):
    """Whether a value is a finite real number in [low, high]."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value) and low <= value <= high
    except OverflowError:  # An integer that no float can hold.
        return False


def is_count(value, least):
    """Whether a value is an integer of at least `least`."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return is_integer and value >= least


def check_count(name, value, least):
    """Raises an error if a value is not an integer of at least `least`.

    Raises:
        ValueError: naming the argument.
    """
    if not is_count(value, least):
        raise ValueError(
            f"`{name}` must be an integer of at least {least}. "
            f"Received: {name}={shown(value)}"
        )


def shown(value):
    """How a message shows a number or a list of numbers, in a few digits."""
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(shown, value)) + ")"
    if isinstance(value, int) and abs(value) >= 2**63:
        return f"{'-' * (value < 0)}2**{value.bit_length() - 1} or beyond"
    return repr(value)


def check_list(name, value, of):
    """Raises an error if a value is not a list or tuple.

    Args:
        of: str. What the list should contain, for the message.

    Raises:
        TypeError: naming the argument.
    """
    if not isinstance(value, (list, tuple)):
        raise TypeError(
            f"`{name}` must be a list of {of}. Received: {name}={value!r} of "
            f"type {type(value).__name__}"
        )
