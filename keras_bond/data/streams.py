"""Endless batches of prompts."""

import collections
import threading

import keras

from keras_bond.data import lengths
from keras_bond.data.table import to_table

# How many batches a stream keeps: data loaders run ahead of the step.
STREAM_MEMORY = 64


class PromptStream(keras.utils.PyDataset):
    """Batches of prompts without an end, which need `steps_per_epoch`.

    Args:
        batches: iterable of batches, see `to_table`.
        encoder: a `PromptEncoder`.
        row_factor: int. Batches are padded to a multiple of it. Defaults to 1.

    Attributes:
        steps_per_epoch: int, batches per epoch, or `None` where Keras counts.
        start_epoch: callable that is given this stream at the start of each
            epoch and returns how many of its prompts to skip, or `None`.
        left_of_epoch: callable that takes the number of prompts of a whole
            epoch and returns how many of them are still to come.
    """

    is_endless = is_full = True

    def __init__(self, batches, encoder, row_factor=1):
        super().__init__()
        self.steps_per_epoch = self.start_epoch = self.left_of_epoch = None
        self._first_index = 0
        self._num_batches = None
        self.batches = batches
        self.encoder = encoder
        self.row_factor = row_factor
        self._lock = threading.Lock()
        self._restart()

    @property
    def num_batches(self):
        return self._num_batches or self.steps_per_epoch

    @property
    def prompts_per_batch(self):
        if self._batch_size is None:
            with self._lock:
                self._advance()
        return self._batch_size

    @property
    def prompts_per_epoch(self):
        return self.steps_per_epoch * self.prompts_per_batch

    def fingerprint(self):
        """Always 0: a stream cannot be told from others before it is read."""
        return 0

    def on_epoch_begin(self):
        if self.start_epoch is None:
            return
        size = self.prompts_per_batch
        self._first_index = -(-self.start_epoch(self) // size)
        left = self.left_of_epoch(self.prompts_per_epoch)
        self._num_batches = -(-left // size)

    def _restart(self):
        self._iterator = iter(self.batches)
        self._recent = collections.OrderedDict()
        self._next_index = 0
        self._batch_size = None

    def __getitem__(self, index):
        index += self._first_index
        with self._lock:
            if index < self._next_index and index not in self._recent:
                self._restart()
            while index > self._next_index and self._batch_size is not None:
                next(self._iterator)
                self._next_index += 1
            while index >= self._next_index:
                self._advance()
            table = self._recent[index]
        first = index * self._batch_size
        indices = list(range(first, first + len(table)))
        rows = lengths.next_multiple(self._batch_size, self.row_factor)
        return self.encoder.to_batch(table.token_ids, indices, rows)

    def _advance(self):
        table = self.encoder.add_token_ids(to_table(next(self._iterator)))
        if self._batch_size is None:
            self._batch_size = len(table)
            lengths.check_sharding(self._batch_size)
        self._recent[self._next_index] = table
        self._next_index += 1
        while len(self._recent) > STREAM_MEMORY:
            self._recent.popitem(last=False)

    def take(self, indices):
        """Returns a `PromptTable` of the given indices, all of one batch."""
        batch = indices[0] // self._batch_size
        first = batch * self._batch_size
        return self._recent[batch].take([i - first for i in indices])
