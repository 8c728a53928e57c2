"""Completions to be scored."""

import copy
import dataclasses

from keras_bond.rewards.columns import check_columns
from keras_bond.rewards.log import RewardLog

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
            copy, such as open files, are shared.
        """

        def of(values):
            if isinstance(values, list):
                return [_copy(value) for value in values]
            return _copy(values)

        fields = {name: of(getattr(self, name)) for name in CHANGEABLE}
        columns = {name: of(column) for name, column in self.columns.items()}
        return dataclasses.replace(self, columns=columns, **fields)


def _copy(value):
    # Token ids: `deepcopy` is slow for many numbers.
    if isinstance(value, list) and all(type(entry) is int for entry in value):
        return list(value)
    try:
        return copy.deepcopy(value)
    except Exception:
        return value
