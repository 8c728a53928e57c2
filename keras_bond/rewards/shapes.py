"""Rewards of content, length and repetition of a completion."""

import collections
import re

import keras

from keras_bond.arguments import check_count
from keras_bond.arguments import is_number
from keras_bond.arguments import shown
from keras_bond.rewards.scores import RewardValueError
from keras_bond.rewards.text import TextReward
from keras_bond.rewards.text import entry_text
from keras_bond.rewards.text import is_missing

UNITS = ("words", "characters", "tokens")


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


class LengthReward(TextReward):
    """A rule of the length of a completion; a subclass defines `score_length`.

    Args:
        unit: `"words"`, `"characters"`, or `"tokens"`: those that the policy
            drew, the end token included.

    Raises:
        ValueError: if the unit is unknown; when scoring, if tokens are counted
            and `completion_ids` is not passed, which a trainer passes.
    """

    def __init__(self, unit):
        if unit not in UNITS:
            raise ValueError(
                f"`unit` must be one of {UNITS}. Received: unit={unit!r}"
            )
        self.unit = unit

    def __call__(self, /, prompts, completions, **columns):
        if self.unit != "tokens":
            return super().__call__(prompts, completions, **columns)
        token_ids = columns.get("completion_ids")
        if token_ids is None or len(token_ids) != len(completions):
            raise RewardValueError(
                f"`{type(self).__name__}` in tokens must be given the token "
                "ids of each completion: pass completion_ids=[[...], ...], as "
                'a trainer does, or use unit="words". Received: '
                f"completion_ids={shown(token_ids)}"
            )
        return [self.score_length(len(ids)) for ids in token_ids]

    def score(self, completion):
        is_words = self.unit == "words"
        return self.score_length(
            len(completion.split() if is_words else completion)
        )


@keras.saving.register_keras_serializable(package="keras_bond")
class Length(LengthReward):
    """0 if the length is within bounds, else minus the distance to them.

    Args:
        minimum: int. Defaults to 0.
        maximum: int, or `None` for no bound. Defaults to `None`.
        unit: `"words"`, `"characters"`, or `"tokens"`: those that the policy
            drew, the end token included. Defaults to `"words"`.

    Raises:
        ValueError: if the bounds cross, or the unit is unknown; when scoring,
            if tokens are counted and `completion_ids` is not passed, which a
            trainer passes.

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
        super().__init__(unit)
        self.minimum = minimum
        self.maximum = maximum

    def score_length(self, length):
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
class OverlongPenalty(LengthReward):
    """A soft penalty for completions that come near a limit, in [-1, 0].

    0 up to `maximum - buffer`, from there linearly down to -1 at `maximum`, and
    -1 beyond. It is the soft overlong punishment of DAPO (Yu et al., 2025,
    arXiv 2503.14476, equation 13). With `max_completion_length` as `maximum`,
    a completion that was truncated costs 1, and one that nearly was costs
    almost as much. Add it to another reward in a list.

    Args:
        maximum: int, at least 1. The length that costs 1, such as the
            `max_completion_length` of the trainer.
        buffer: int, from 1 to `maximum`. The lengths below `maximum` over which
            the penalty grows.
        unit: `"tokens"`, those that the policy drew, the end token included,
            `"words"` or `"characters"`. Defaults to `"tokens"`.

    Raises:
        ValueError: if a number is out of its range, or the unit is unknown;
            when scoring, if tokens are counted and `completion_ids` is not
            passed, which a trainer passes.

    Example:

    ```python
    reward = keras_bond.rewards.OverlongPenalty(4, buffer=2, unit="words")
    reward(["..."] * 2, ["one two three", "one two three four"])  # [-0.5, -1.0]
    ```
    """

    def __init__(self, maximum, buffer, unit="tokens"):
        check_count("maximum", maximum, 1)
        check_count("buffer", buffer, 1)
        if buffer > maximum:
            raise ValueError(
                "`buffer` must not be above `maximum`. Received: "
                f"buffer={buffer}, maximum={maximum}"
            )
        super().__init__(unit)
        self.maximum = maximum
        self.buffer = buffer

    def score_length(self, length):
        excess = length - (self.maximum - self.buffer)
        return max(min(-excess / self.buffer, 0.0), -1.0)

    def get_config(self):
        return {
            "maximum": self.maximum,
            "buffer": self.buffer,
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
