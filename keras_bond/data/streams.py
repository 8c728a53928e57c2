"""Endless batches of prompts."""

import collections
import dataclasses
import threading

import keras

from keras_bond.arguments import check_count
from keras_bond.data import lengths
from keras_bond.data.origin import FileColumns
from keras_bond.data.origin import Origin
from keras_bond.data.sources import batch_of
from keras_bond.data.table import concatenate
from keras_bond.data.table import to_table

# How many batches a stream keeps: data loaders run ahead of the step.
STREAM_MEMORY = 64


def tables_of(data):
    """Yields a `PromptTable` for each batch or row of a data set."""
    count = 0
    for element in data:
        batch, _ = batch_of(element)
        columns = batch if isinstance(batch, dict) else {"prompts": batch}
        table = to_table(FileColumns(columns, Origin(first=count)))
        count += len(table)
        yield table


def over_and_over(data, size):
    """Yields `PromptTable`s of one size, and starts again where data end.

    Args:
        data: iterable of rows or batches, which can be iterated again.
        size: int. Number of prompts in each table.

    Raises:
        ValueError: if there are no prompts.
    """
    waiting = concatenate([])
    while True:
        count = 0
        for table in tables_of(data):
            count += len(table)
            waiting = concatenate([waiting, table])
            while len(waiting) >= size:
                yield waiting.take(range(size))
                waiting = waiting.take(range(size, len(waiting)))
        if count == 0:
            raise ValueError(
                "There must be at least one prompt. Received: no prompts"
            )


class PromptStream(keras.utils.PyDataset):
    """Batches of prompts without an end, which need `steps_per_epoch`.

    Data that end are repeated, so that every batch has `size` prompts.

    Args:
        data: iterable of rows or of batches, see `tables_of`.
        encoder: a `PromptEncoder`.
        size: int. Prompts per batch, over all devices and processes.
        row_factor: int. Batches are padded to a multiple of it. Defaults to 1.
        given: tuple of str. Names of the columns of completions that the data
            give. Defaults to none.

    Attributes:
        steps_per_epoch: int, batches per epoch, or `None` where Keras counts.
        start_epoch: callable that is given this stream at the start of each
            epoch and returns how many of its prompts to skip, `None` before the
            first; or `None`.
        left_of_epoch: callable that takes the number of prompts of a whole
            epoch and returns how many of them are still to come.
    """

    is_endless = is_full = True

    def __init__(self, data, encoder, size, row_factor=1, given=()):
        super().__init__()
        check_count("batch_size", size, 1)
        lengths.check_sharding(size)
        self.steps_per_epoch = self.start_epoch = self.left_of_epoch = None
        self._first_index = 0
        self._num_batches = None
        self.data = data
        self.encoder = encoder
        self.row_factor = row_factor
        self.given = given
        self._num_given = None
        self.prompts_per_batch = size
        self._lock = threading.Lock()
        self._restart()

    @property
    def num_batches(self):
        return self._num_batches or self.steps_per_epoch

    @property
    def prompts_per_epoch(self):
        return self.steps_per_epoch * self.prompts_per_batch

    def fingerprint(self):
        """Always 0: a stream cannot be told from others before it is read."""
        return 0

    def on_epoch_begin(self):
        skipped = self.start_epoch(self) if self.start_epoch else None
        if skipped is None:
            return
        size = self.prompts_per_batch
        self._first_index = -(-skipped // size)
        left = self.left_of_epoch(self.prompts_per_epoch)
        self._num_batches = -(-left // size)

    def _restart(self):
        self._tables = over_and_over(self.data, self.prompts_per_batch)
        self._recent = collections.OrderedDict()
        self._next_index = 0

    def __getitem__(self, index):
        index += self._first_index
        with self._lock:
            if index < self._next_index and index not in self._recent:
                self._restart()
            while index > self._next_index:
                next(self._tables)
                self._next_index += 1
            if index == self._next_index:
                self._advance()
            table = self._recent[index]
        size = self.prompts_per_batch
        indices = list(range(index * size, (index + 1) * size))
        rows = lengths.next_multiple(size, self.row_factor)
        return self.encoder.to_batch(table, indices, rows)

    def _advance(self):
        origin = Origin(first=self._next_index * self.prompts_per_batch)
        table = dataclasses.replace(next(self._tables), origin=origin)
        table = self.encoder.add_token_ids(table)
        self._check_num_given(table)
        self._recent[self._next_index] = table
        self._next_index += 1
        while len(self._recent) > STREAM_MEMORY:
            self._recent.popitem(last=False)

    def _check_num_given(self, table):
        """Raises an error if prompts differ in their number of completions."""
        count = table.num_given
        self._num_given = count if self._num_given is None else self._num_given
        if count != self._num_given:
            raise ValueError(
                "All prompts must have the same number of given completions. "
                f"Received: {count} completions in {table.origin.name(0)}, "
                f"{self._num_given} of the first prompt"
            )

    def take(self, indices):
        """Returns a `PromptTable` of the given indices, all of one batch."""
        batch = indices[0] // self.prompts_per_batch
        first = batch * self.prompts_per_batch
        return self._recent[batch].take([i - first for i in indices])
