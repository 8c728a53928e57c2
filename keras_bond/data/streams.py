"""Batches of prompts that never end."""

import collections
import threading

import keras

from keras_bond.data.columns import to_columns
from keras_bond.data.rows import check_spreads
from keras_bond.data.rows import take

# How many batches a stream remembers: data loaders run ahead of the step.
STREAM_MEMORY = 64


class PromptStream(keras.utils.PyDataset):
    """Prompts without an end, in batches: needs `steps_per_epoch`.

    Args:
        batches: iterable of batches, see `to_columns`.
        encoder: a `PromptEncoder`.

    Attributes:
        steps_per_epoch: int, batches an epoch, or `None` where Keras counts.
        start_epoch: callable that is told of each epoch, with this stream, and
            returns how many prompts of the stream to pass over, or `None`.
        left_of_epoch: callable that takes the prompts of a whole epoch and
            returns how many of them are still to come.
    """

    is_endless = True

    def __init__(self, batches, encoder):
        super().__init__()
        self.steps_per_epoch = self.start_epoch = self.left_of_epoch = None
        self._first_index = 0
        self._num_batches = None
        self.batches = batches
        self.encoder = encoder
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
        """A number that tells other prompts apart: there is none here."""
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
            columns = self._recent[index]
        count = len(columns["token_ids"])
        first = index * self._batch_size
        rows = list(range(first, first + count))
        token_ids = columns["token_ids"]
        return self.encoder.to_batch(token_ids, rows, self._batch_size)

    def _advance(self):
        columns = self.encoder.add_token_ids(to_columns(next(self._iterator)))
        if self._batch_size is None:
            self._batch_size = len(columns["token_ids"])
            check_spreads(self._batch_size)
        self._recent[self._next_index] = columns
        self._next_index += 1
        while len(self._recent) > STREAM_MEMORY:
            self._recent.popitem(last=False)

    def take(self, rows):
        """Returns `(prompts, columns)` of the given row numbers."""
        index = rows[0] // self._batch_size
        first = index * self._batch_size
        return take(self._recent[index], [row - first for row in rows])
