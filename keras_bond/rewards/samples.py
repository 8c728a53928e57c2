"""Completions to be scored, as text and as tokens."""

import dataclasses


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
