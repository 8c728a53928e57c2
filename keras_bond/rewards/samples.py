"""What a reward is given: completions, as text and as tokens."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Samples:
    """Completions to be scored, those of one prompt side by side.

    Attributes:
        prompts: list of str, one for each completion; `None` where the policy
            has no tokenizer.
        completions: list of str, without end tokens; `None` as above.
        columns: dict of lists, the other columns of the data set, one entry
            for each completion.
        token_ids: int32 array `(rows, length)`, prompt and completion in one
            row, padded on the right.
        padding_mask: bool array `(rows, length)`, True for real tokens.
        num_samples: int. Completions of each prompt.
    """

    prompts: list | None
    completions: list | None
    columns: dict
    token_ids: object
    padding_mask: object
    num_samples: int

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
        starts = range(0, len(self), step)
        return [self._take(slice(i, i + step)) for i in starts]

    def _take(self, rows):
        return Samples(
            prompts=self.prompts and self.prompts[rows],
            completions=self.completions and self.completions[rows],
            columns={k: v[rows] for k, v in self.columns.items()},
            token_ids=self.token_ids[rows],
            padding_mask=self.padding_mask[rows],
            num_samples=self.num_samples,
        )
