"""Verifiable rewards: 1 for the right answer, 0 for a wrong one."""

import decimal
import numbers
import re

import keras
import numpy as np

from keras_bond.rewards.text import TextReward
from keras_bond.rewards.text import entry_text
from keras_bond.rewards.text import is_missing

NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
GSM8K_MARK = "####"
# Characters of a number that somebody wrote in float64 and float32 holds.
MOST_DIGITS = 14


@keras.saving.register_keras_serializable(package="keras_bond")
class ExactAnswer(TextReward):
    """1 if the completion is the answer, else 0.

    Args:
        column: str. The column of the answers, str; `None` or NaN for "cannot
            score". Defaults to `"answer"`.
        ignore_case: bool. Defaults to False. Leading and trailing
            spaces never count.

    Example:

    ```python
    reward = keras_bond.rewards.ExactAnswer(ignore_case=True)
    reward(["Capital of France?"], [" paris"], answer=["Paris"])  # [1.0]
    ```
    """

    def __init__(self, column="answer", ignore_case=False):
        self.column = column
        self.ignore_case = ignore_case

    def score(self, completion, entry):
        if is_missing(entry):
            return None
        completion, entry = completion.strip(), entry_text(entry).strip()
        if self.ignore_case:
            completion, entry = completion.casefold(), entry.casefold()
        return float(completion == entry)

    def get_config(self):
        return {"column": self.column, "ignore_case": self.ignore_case}


@keras.saving.register_keras_serializable(package="keras_bond")
class RegexAnswer(TextReward):
    """1 if the last match of a pattern in the completion is the answer, else 0.

    The pattern is searched in the column too, which may hold a whole solution;
    if it does not match there, the whole entry is the answer.

    Args:
        pattern: str. A regular expression; its first group, or all of it
            without one, is the answer.
        column: str. The column of the answers, str; `None` or NaN for "cannot
            score". Defaults to `"answer"`.

    Raises:
        ValueError: if the pattern is not a regular expression.

    Example:

    ```python
    reward = keras_bond.rewards.RegexAnswer(r"\\\\boxed\\{([^}]*)\\}")
    reward(["2 + 2?"], ["so \\\\boxed{4}"], answer=["4"])  # [1.0]
    ```
    """

    def __init__(self, pattern, column="answer"):
        try:
            self._pattern = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                "`pattern` must be a regular expression. Received: "
                f"pattern={pattern!r}, {error}"
            ) from None
        self.pattern = pattern
        self.column = column

    def score(self, completion, entry):
        if is_missing(entry):
            return None
        text = entry_text(entry)
        found, answer = self._last(completion), self._last(text)
        answer = text.strip() if answer is None else answer
        return float(found is not None and found == answer)

    def _last(self, text):
        matches = list(self._pattern.finditer(text))
        if not matches:
            return None
        group = 1 if self._pattern.groups else 0
        return (matches[-1].group(group) or "").strip()

    def get_config(self):
        return {"pattern": self.pattern, "column": self.column}


@keras.saving.register_keras_serializable(package="keras_bond")
class NumberAnswer(TextReward):
    """1 if the completion ends with the right number, else 0.

    For GSM8K and similar data: the number after the last `####`, or the last
    number if there is no such mark, in both completion and column. Commas,
    dollar signs and trailing zeros do not count, and 1e3 is 1000. A column of
    float32 means its shortest decimal numbers, such as 0.1; of float16, pass
    text.

    Args:
        column: str. The column of the answers: numbers, or whole solutions.
            Defaults to `"answer"`.

    Example:

    ```python
    reward = keras_bond.rewards.NumberAnswer()
    reward(["..."], ["3 * 14 = 42, so $42.00."], answer=["6 * 7 #### 42"])
    # [1.0]
    ```
    """

    def __init__(self, column="answer"):
        self.column = column

    def score(self, completion, entry):
        answer = _as_decimal(entry)
        if answer is None:
            return None
        return float(find_number(completion) == answer)

    def get_config(self):
        return {"column": self.column}


def _as_decimal(entry):
    """The number that an entry is, or that its text ends with."""
    if is_missing(entry) or isinstance(entry, (bool, np.bool_)):
        return None
    if isinstance(entry, numbers.Integral):
        return decimal.Decimal(int(entry))
    if isinstance(entry, numbers.Real):
        entry = decimal.Decimal(str(_as_written(entry)))
    if isinstance(entry, decimal.Decimal):
        return entry if entry.is_finite() else None
    return find_number(str(entry))


def _as_written(number):
    """A float whose text is what was written: 0.1, not that of its float32.

    Columns of float32 reach a reward as Python's floats, which then have all
    the digits of the rounding.
    """
    if not isinstance(number, (float, np.floating)):
        number = float(number)
    if not isinstance(number, float):
        return number
    is_long = len(repr(number)) > MOST_DIGITS
    with np.errstate(over="ignore"):
        rounded = np.float32(number)
    return rounded if is_long and float(rounded) == number else number


def find_number(text):
    """Finds the number that a solution ends with.

    Args:
        text: str.

    Returns:
        `decimal.Decimal`, or `None`.
    """
    _, mark, marked = text.rpartition(GSM8K_MARK)
    numbers = NUMBER.findall(marked if mark else text)
    if not numbers:
        return None
    number = numbers[0] if mark else numbers[-1]
    try:
        return decimal.Decimal(number.replace(",", "").replace("$", ""))
    except decimal.InvalidOperation:  # An exponent of twenty digits.
        return None
