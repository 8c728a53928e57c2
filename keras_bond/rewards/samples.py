"""Completions to be scored, with what rewards are told and log of them."""

import contextlib
import copy
import dataclasses
import math
import zlib

import numpy as np

from keras_bond.rewards.scores import RewardTypeError
from keras_bond.rewards.scores import RewardValueError
from keras_bond.rewards.scores import as_number
from keras_bond.rewards.scores import to_host

# What of a rollout the rewards are told.
DRAWN = ("completion_ids", "mask", "terminated", "token_ids", "padding_mask")
# Fields, beside the columns, that a reward could change in place.
CHANGEABLE = (
    "prompts",
    "completions",
    "conversations",
    "completion_ids",
    "terminated",
    "token_ids",
    "padding_mask",
)
# The column of what a policy sees, as KerasHub's preprocessors name it: a list
# of arrays `(height, width, 3)` for each prompt.
IMAGES = "images"
# What a run passes to reward functions, in addition to the columns.
LOG_NAMES = ("log_metric", "log_extra")
PASSED = ("prompts", "completions", "completion_ids", *LOG_NAMES)
# `prompt` would stand beside `prompts`. TRL passes its trainer's state.
RESERVED = (*PASSED, "prompt", "trainer_state")


class RewardLog:
    """What was logged while some completions were scored.

    Attributes:
        metrics: dict of lists of float: for each name, one value for each call
            of `log_metric`.
        columns: dict of lists: for each name, one entry for each completion,
            `None` for those that were not logged.
    """

    def __init__(self):
        self.metrics = {}
        self.columns = {}

    def add(self, log, rows, count):
        """Adds what was logged while some of the completions were scored.

        Args:
            log: `RewardLog` of these completions.
            rows: sequence of int. Their indices.
            count: int. Number of completions in all.
        """
        for name, values in log.metrics.items():
            self.metrics.setdefault(name, []).extend(values)
        for name, values in log.columns.items():
            column = self.columns.setdefault(name, [None] * count)
            for row, value in zip(rows, values):
                column[row] = value


@dataclasses.dataclass(frozen=True)
class Samples:
    """Completions to be scored, those of one prompt side by side.

    Attributes:
        prompts: list of str, one for each completion; `None` if the policy
            has no tokenizer.
        completions: list of str, without end tokens; `None` as above.
        columns: dict of lists, the other columns of the data set, one entry
            for each completion.
        token_ids: int32 array `(rows, length)`, prompt and completion in one
            row, padded on the right.
        padding_mask: bool array `(rows, length)`, True for real tokens.
        num_samples: int. Completions per prompt.
        completion_ids: list of lists of int, end tokens included, or `None`.
        terminated: bool array `(rows,)`, False for a completion that was
            truncated at the length limit; or `None`.
        tokenizer: the KerasHub tokenizer of `token_ids`, or `None`.
        conversations: list of lists of turns, dicts with `"role"` and
            `"content"`, that `prompts` were rendered from, one for each
            completion; `None` if the prompts were text.
        log: `RewardLog`, what reward functions log about these completions.

    Raises:
        TypeError, ValueError: if a column would replace what is passed to
            reward functions anyway, such as `completions`.
    """

    prompts: list | None
    completions: list | None
    columns: dict
    token_ids: object
    padding_mask: object
    num_samples: int
    completion_ids: list | None = None
    terminated: object = None
    tokenizer: object = None
    conversations: list | None = None
    log: RewardLog = dataclasses.field(
        default_factory=RewardLog, repr=False, compare=False
    )

    def __post_init__(self):
        check_columns(self.columns)

    @classmethod
    def of_rollout(cls, drawn, table, tokenizer):
        """Describes the completions of a rollout.

        Args:
            drawn: dict of arrays over `(prompts, num_samples)`, those of
                `DRAWN`, see `keras_bond.rollouts.Rollout.collate`.
            table: a `keras_bond.data.table.PromptTable` of the prompts.
            tokenizer: a `keras_bond.data.tokenizer.TextTokenizer`, or `None`.

        Returns:
            a `Samples`, those of a prompt side by side.
        """
        num_samples = drawn["mask"].shape[1]
        rows = {k: v.reshape(-1, *v.shape[2:]) for k, v in drawn.items()}
        completion_ids = [
            ids[kept].tolist()
            for ids, kept in zip(rows["completion_ids"], rows["mask"])
        ]
        table = table.repeat(num_samples)
        return cls(
            prompts=table.prompts,
            completions=tokenizer and tokenizer.decode(completion_ids),
            columns=table.columns,
            token_ids=rows["token_ids"],
            padding_mask=rows["padding_mask"],
            num_samples=num_samples,
            completion_ids=completion_ids,
            terminated=rows["terminated"],
            tokenizer=tokenizer and tokenizer.tokenizer,
            conversations=table.conversations,
        )

    def __len__(self):
        return len(self.token_ids)

    def split(self, num_prompts):
        """Splits into parts that keep the completions of a prompt together.

        Args:
            num_prompts: int. Prompts in a part; the last may have fewer.

        Returns:
            list of `Samples`, in order.
        """
        step = num_prompts * self.num_samples
        rows = range(len(self))
        return [
            self.pick(rows[start : start + step], self.num_samples)
            for start in range(0, len(self), step)
        ]

    def pick(self, rows, num_samples=1):
        """Takes some completions.

        Args:
            rows: sequence of int.
            num_samples: int. Completions per prompt among those taken.
                Defaults to 1: each as the only one of its prompt.

        Returns:
            `Samples`, in the order of `rows`.
        """
        rows = list(rows)

        def of(values):
            if values is None or hasattr(values, "shape"):
                return None if values is None else values[rows]
            return [values[row] for row in rows]

        return Samples(
            prompts=of(self.prompts),
            completions=of(self.completions),
            columns={name: of(column) for name, column in self.columns.items()},
            token_ids=of(self.token_ids),
            padding_mask=of(self.padding_mask),
            num_samples=num_samples,
            completion_ids=of(self.completion_ids),
            terminated=of(self.terminated),
            tokenizer=self.tokenizer,
            conversations=of(self.conversations),
        )

    def copy(self):
        """Copies everything that a reward could change, except for `log`.

        Returns:
            `Samples` that share no list, dict or array with these, nor one of
            their entries with another. Column entries that Python cannot
            copy, such as open files, are shared, as are lists of read-only
            arrays, such as images.
        """

        def of(values):
            if isinstance(values, list):
                return [_copy(value) for value in values]
            return _copy(values)

        fields = {name: of(getattr(self, name)) for name in CHANGEABLE}
        columns = {name: of(column) for name, column in self.columns.items()}
        return dataclasses.replace(self, columns=columns, **fields)


def _copy(value):
    # Token ids, for many of which `deepcopy` is slow, and images.
    if isinstance(value, list) and all(map(_is_constant, value)):
        return list(value)
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


def crc32_of_images(images, crc=0):
    """A checksum of images, continued from that of what comes before.

    Args:
        images: list of arrays `(height, width, 3)`.
        crc: int.

    Returns:
        int.
    """
    for image in images:
        # Of all pixels it would take seconds.
        crc = zlib.crc32(image[::8, ::8].tobytes(), crc)
    return crc


def _is_constant(entry):
    """Whether an entry is an integer, or an array that nobody can write to."""
    flags = getattr(entry, "flags", None)
    return type(entry) is int or not getattr(flags, "writeable", True)


def check_columns(names):
    """Raises an error if a column would replace what a run passes to rewards.

    Args:
        names: names of columns other than that of the prompts.

    Raises:
        TypeError: if a name is not a string.
        ValueError: if a name is one of `RESERVED`.
    """
    check_names(names)
    for name in names:
        if name in RESERVED:
            raise RewardValueError(
                f"A column must not be called `{name}`, which is what a run "
                "itself passes to reward functions: rename it, as in "
                f'data["reference_{name}"] = data.pop("{name}"), or leave it '
                f"out. Received: columns {sorted(map(str, names))}"
            )


def check_names(names):
    """Raises an error if the name of a column is not a string.

    Raises:
        TypeError: naming the column.
    """
    for name in names:
        if not isinstance(name, str):
            raise RewardTypeError(
                "Columns must have strings as names, because reward "
                "functions receive them as keyword arguments. "
                f"Received: column {name!r} of type {type(name).__name__}"
            )


class Logger:
    """The functions with which one reward logs, named as in TRL.

    Args:
        reward: str. Name of the reward, for messages.
        log: `RewardLog` to which they write.
        count: int. Number of completions that the reward scores.
    """

    def __init__(self, reward, log, count):
        self._reward = reward
        self._log = log
        self._count = count

    def log_metric(self, name, value):
        """Logs a number, which `fit` and `evaluate` report as `rewards/name`.

        Args:
            name: str.
            value: float; NaN or masked for "no number". What is logged is the
                mean over an epoch's steps.

        Raises:
            TypeError: if `value` is not a number.
        """
        self._check_name("log_metric", name)
        try:
            value = as_number(value)
        except OverflowError:
            value = math.inf
        except Exception as error:
            raise RewardTypeError(
                f"`log_metric` of the reward `{self._reward}` must be given a "
                f"number. Received: name={name!r}, value of type "
                f"{type(value).__name__}"
            ) from error
        self._log.metrics.setdefault(name, []).append(value)

    def log_extra(self, column, values):
        """Logs a column, which `HeldOut` shows below the completions.

        Args:
            column: str.
            values: list with one entry for each completion.

        Raises:
            TypeError: if `values` is not a list.
            ValueError: if it has another length.
        """
        self._check_name("log_extra", column)
        values = to_host(values)
        if isinstance(values, (str, bytes, dict)) or not hasattr(
            values, "__len__"
        ):
            raise RewardTypeError(
                f"`log_extra` of the reward `{self._reward}` must be given a "
                "list with one entry for each completion. Received: "
                f"column={column!r}, values of type {type(values).__name__}"
            )
        if len(values) != self._count:
            raise RewardValueError(
                f"`log_extra` of the reward `{self._reward}` must be given one "
                f"entry for each completion. Received: column={column!r}, "
                f"{len(values)} values for {self._count} completions"
            )
        self._log.columns[column] = [_as_entry(value) for value in values]

    def _check_name(self, function, name):
        if not isinstance(name, str) or not name:
            raise RewardTypeError(
                f"`{function}` of the reward `{self._reward}` must be given a "
                f"name that is a string. Received: {name!r}"
            )


def _as_entry(value):
    """What a table and a line of JSON can hold of a value."""
    with contextlib.suppress(Exception):
        value, is_masked = value.item(), np.ma.is_masked(value)
        value = None if is_masked else value
    try:
        text = str(value)
    except Exception:  # An integer of more than 4,300 digits.
        return f"a value of type {type(value).__name__}"
    is_plain = value is None or isinstance(value, (str, bool, int, float))
    return value if is_plain else text
