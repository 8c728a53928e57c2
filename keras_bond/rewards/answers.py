"""Verifiable rewards: 1 for the right answer, 0 for a wrong one."""

import decimal
import re

import keras

from keras_bond.rewards.text import TextReward

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
GSM8K_MARK = "####"


@keras.saving.register_keras_serializable(package="keras_bond")
class ExactAnswer(TextReward):
    """1 if the completion is the answer, else 0.

    Args:
        column: str. The column of the answers, str. Defaults to `"answer"`.
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
        completion, entry = completion.strip(), str(entry).strip()
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
        column: str. The column of the answers, str. Defaults to `"answer"`.

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
        found, answer = self._last(completion), self._last(str(entry))
        answer = str(entry).strip() if answer is None else answer
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
    dollar signs and trailing zeros do not count.

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
        answer = find_number(str(entry))
        if answer is None:
            return None
        return float(find_number(completion) == answer)

    def get_config(self):
        return {"column": self.column}


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
    return decimal.Decimal(number.replace(",", "").replace("$", ""))
