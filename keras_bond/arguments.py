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


def check_count(name, value, least, bits=None):
    """Raises an error if a value is not an integer of at least `least`.

    Args:
        bits: int, or `None`. The value must be below `2**bits`.

    Raises:
        ValueError: naming the argument.
    """
    if not is_count(value, least) or (bits and value >= 2**bits):
        limit = f" and below 2**{bits}" if bits else ""
        raise ValueError(
            f"`{name}` must be an integer of at least {least}{limit}. "
            f"Received: {name}={shown(value)}"
        )


def shown(value):
    """A short `repr`; Python refuses that of integers of 4,300 digits."""
    try:
        text = _shown(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _shown(value):
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
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
