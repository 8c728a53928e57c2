"""Rewards of content, length and repetition of a completion."""

import collections
import re

import keras

from keras_bond.arguments import check_count
from keras_bond.arguments import is_number
from keras_bond.rewards.text import TextReward
from keras_bond.rewards.text import entry_text
from keras_bond.rewards.text import is_missing


@keras.saving.register_keras_serializable(package="keras_bond")
class SlotCoverage(TextReward):
    """The share of required strings that a completion contains.

    A string counts as found only as whole words: "7 km" is not in "17 km".

    Args:
        column: str. The column of the required strings: a str, a list of str,
            or a dict of which the values are required. `None`, NaN and empty
            strings are left out, and without any other there is no score.
            Defaults to `"slots"`.
        ignore_case: bool. Defaults to True.

    Example:

    ```python
    reward = keras_bond.rewards.SlotCoverage()
    reward(["..."], ["It is easy."], slots=[["easy", "7 km"]])  # [0.5]
    ```
    """

    def __init__(self, column="slots", ignore_case=True):
        self.column = column
        self.ignore_case = ignore_case

    def score(self, completion, entry):
        slots = list(map(entry_text, _slots_of(entry)))
        if not slots:
            return None
        flags = re.IGNORECASE if self.ignore_case else 0
        found = [
            re.search(rf"(?<!\w){re.escape(slot)}(?!\w)", completion, flags)
            for slot in slots
        ]
        return sum(match is not None for match in found) / len(slots)

    def get_config(self):
        return {"column": self.column, "ignore_case": self.ignore_case}


def _slots_of(entry):
    is_single = isinstance(entry, str) or not hasattr(entry, "__iter__")
    if is_single or is_missing(entry):
        entry = [entry]
    if isinstance(entry, dict):
        entry = entry.values()
    return [slot for slot in entry if not is_missing(slot) and slot != ""]


@keras.saving.register_keras_serializable(package="keras_bond")
class Length(TextReward):
    """0 if the length is within bounds, else minus the distance to them.

    Args:
        minimum: int. Defaults to 0.
        maximum: int, or `None` for no bound. Defaults to `None`.
        unit: `"words"` or `"characters"`. Defaults to `"words"`.

    Raises:
        ValueError: if the bounds cross, or the unit is unknown.

    Example:

    ```python
    reward = keras_bond.rewards.Length(maximum=3)
    reward(["..."], ["one two three four five"])  # [-2.0]
    ```
    """

    def __init__(self, minimum=0, maximum=None, unit="words"):
        has_bounds = is_number(minimum, 0) and (
            maximum is None or is_number(maximum, minimum)
        )
        if not has_bounds:
            raise ValueError(
                "`minimum` must be at least 0 and not above `maximum`. "
                f"Received: minimum={minimum!r}, maximum={maximum!r}"
            )
        if unit not in ("words", "characters"):
            raise ValueError(
                '`unit` must be "words" or "characters". '
                f"Received: unit={unit!r}"
            )
        self.minimum = minimum
        self.maximum = maximum
        self.unit = unit

    def score(self, completion):
        words = self.unit == "words"
        length = len(completion.split() if words else completion)
        missing = max(self.minimum - length, 0)
        most = length if self.maximum is None else self.maximum
        return -float(missing + max(length - most, 0))

    def get_config(self):
        return {
            "minimum": self.minimum,
            "maximum": self.maximum,
            "unit": self.unit,
        }


@keras.saving.register_keras_serializable(package="keras_bond")
class Repetition(TextReward):
    """Minus the share of word n-grams that occurred before, in [-1, 0].

    The penalty of Yeo et al. (2025, arXiv 2502.03373, appendix C.2), on words
    instead of tokens.

    Args:
        n: int, at least 1. Words in an n-gram. Defaults to 3.

    Raises:
        ValueError: if `n` is below 1.

    Example:

    ```python
    keras_bond.rewards.Repetition(n=1)(["..."], ["so so good"])  # [-0.333...]
    ```
    """

    def __init__(self, n=3):
        check_count("n", n, 1)
        self.n = n

    def score(self, completion):
        words = completion.split()
        starts = range(len(words) - self.n + 1)
        counts = collections.Counter(
            tuple(words[i : i + self.n]) for i in starts
        )
        if not counts:
            return 0.0
        return len(counts) / counts.total() - 1.0

    def get_config(self):
        return {"n": self.n}
