"""The base class of rewards that are rules of text."""

import decimal

import numpy as np

from keras_bond.rewards.samples import RESERVED
from keras_bond.rewards.scores import RewardValueError


class TextReward:
    """A rule that scores one completion at a time.

    An ordinary reward function, `reward(prompts, completions, **columns)`: it
    can be called directly and used wherever reward functions are, also in TRL.
    A subclass defines `score(completion)` or, if it sets `column`,
    `score(completion, entry)` with that column's entry, which returns a float,
    or `None` for "cannot score".

    Attributes:
        column: str, or `None`. The column of the data that it reads.
    """

    column = None

    @property
    def __name__(self):
        return type(self).__name__

    # A column may be called `self`.
    def __call__(self, /, prompts, completions, **columns):
        texts = as_texts(completions)
        if self.column is None:
            return [self.score(text) for text in texts]
        if self.column not in columns:
            raise RewardValueError(
                f"The reward `{type(self).__name__}` reads the column "
                f"`{self.column}`, which the data do not have: pass the "
                "prompts as a dict with it, or name another `column`. "
                f"Received: columns {sorted(set(columns) - set(RESERVED))}"
            )
        entries = columns[self.column]
        if len(entries) != len(texts):
            raise RewardValueError(
                f"The reward `{type(self).__name__}` must have one entry of "
                f"the column `{self.column}` for each completion. Received: "
                f"{len(entries)} entries for {len(texts)} completions"
            )
        return [self.score(text, entry) for text, entry in zip(texts, entries)]

    def score(self, completion, entry=None):
        """Scores one completion."""
        raise TypeError(
            f"`{type(self).__name__}` must have a method `score`. "
            f"Received: {type(self)!r}"
        )

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def as_texts(completions):
    """The strings in completions that may be lists of turns, as in TRL."""
    return [
        text if isinstance(text, str) else text[-1]["content"]
        for text in completions
    ]


def is_missing(entry):
    """Whether an entry of a column is None, masked, NaN or its like."""
    # The missing value of pandas is neither equal nor unequal to itself.
    if entry is None or type(entry).__name__ in ("NAType", "MaskedConstant"):
        return True
    unequal = entry != entry
    return isinstance(unequal, (bool, np.bool_)) and bool(unequal)


def entry_text(entry):
    """An entry of a column as text."""
    # Python does not write integers of more than 4,300 digits.
    return str(decimal.Decimal(entry) if type(entry) is int else entry)
