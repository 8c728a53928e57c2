"""Batches of tokenised prompts, as `fit`, `evaluate` and `predict` eat them.

Strings never enter a compiled step: a batch carries token ids and row numbers,
and the text and the other columns are looked up by row number when the
completions are to be scored.
"""

import collections
import zlib

import keras
import numpy as np

from keras_bond import backend
from keras_bond.arguments import check_count
from keras_bond.data.columns import to_columns
from keras_bond.data.rows import check_spreads
from keras_bond.data.rows import spreadable
from keras_bond.data.rows import take
from keras_bond.data.sources import read_rows
from keras_bond.data.streams import PromptStream


class PromptEncoder:
    """Turns columns into padded token ids.

    Args:
        codec: a `TextCodec`, or `None` where the policy has no tokenizer.
        buckets: tuple of int, increasing. Tokens in a padded prompt, start
            token included: batches have the last, and `cut` takes the first
            that covers their prompts.
        truncate: `None`, or `"left"` to keep the end of a prompt that is too
            long, behind its start token.

    Raises:
        ValueError: when encoding, for a prompt that is empty or too long, or
            for strings without a tokenizer.
    """

    def __init__(self, codec, buckets, truncate=None):
        self.codec = codec
        self.buckets = tuple(buckets)
        self.max_prompt_length = self.buckets[-1]
        self.truncate = truncate

    def add_token_ids(self, columns):
        """Returns `columns` with `"token_ids"`, and `"prompts"` if possible."""
        if "token_ids" in columns:
            token_ids = columns["token_ids"]
        elif self.codec is None:
            raise ValueError(
                "`policy` has no tokenizer, so prompts must be tokenised: "
                'pass {"token_ids": ..., "padding_mask": ...}, or build the '
                "policy with a preprocessor. Received: strings"
            )
        else:
            token_ids = self.codec.encode(columns["prompts"])
        token_ids = [self._fit(i, ids) for i, ids in enumerate(token_ids)]
        if "prompts" not in columns and self.codec is not None:
            columns = {**columns, "prompts": self.codec.decode(token_ids)}
        return {**columns, "token_ids": token_ids}

    def _fit(self, i, ids):
        if len(ids) == 0:
            raise ValueError(
                "A prompt must have at least one token. "
                f"Received: an empty prompt, number {i}"
            )
        if len(ids) <= self.max_prompt_length:
            return ids
        if self.truncate is None:
            raise ValueError(
                "Every prompt must fit into `max_prompt_length` tokens: raise "
                'it, or pass truncate="left" to keep the end of long prompts. '
                f"Received: prompt {i} with {len(ids)} tokens, "
                f"max_prompt_length={self.max_prompt_length}"
            )
        start = self.codec.start if self.codec is not None else []
        kept = self.max_prompt_length - len(start)
        return [*start, *ids[len(ids) - kept :]]

    def bucket(self, length):
        """The shortest padded length that covers a prompt."""
        return next(b for b in self.buckets if b >= length)

    def cut(self, inputs):
        """Cuts a batch to the bucket that covers its prompts.

        Not done in `to_batch`: `tf.data`, by which Keras feeds TensorFlow,
        wants batches of one shape.

        Args:
            inputs: dict of arrays or tensors, see `to_batch`.

        Returns:
            `inputs` with shorter `prompt_ids`.
        """
        if len(self.buckets) == 1:
            return inputs
        bucket = self.bucket(int(keras.ops.max(inputs["prompt_lengths"])))
        return {**inputs, "prompt_ids": inputs["prompt_ids"][:, :bucket]}

    def to_batch(self, token_ids, rows, batch_size):
        """Pads prompts to one shape, and the batch to `batch_size` rows.

        Rows that only fill the batch repeat the last prompt under row number
        -1 and count for nothing: a last, smaller batch compiles nothing new.
        Where several processes train together, each gets its own rows.

        Returns:
            dict of int32 arrays, in a tuple: `prompt_ids` `(rows,
            max_prompt_length)`, and `prompt_lengths`, `prompt_index` and
            `index_in_batch` `(rows,)`.
        """
        missing = batch_size - len(rows)
        rows = [*rows, *[-1] * missing]
        token_ids = [*token_ids, *[token_ids[-1]] * missing]
        lengths = np.array([len(ids) for ids in token_ids], "int32")
        padded = np.zeros((batch_size, self.max_prompt_length), "int32")
        for i, ids in enumerate(token_ids):
            padded[i, : len(ids)] = ids
        inputs = {
            "prompt_ids": padded,
            "prompt_lengths": lengths,
            "prompt_index": np.array(rows, "int32"),
            "index_in_batch": np.arange(batch_size, dtype="int32"),
        }
        return ({k: backend.devices.own_rows(v) for k, v in inputs.items()},)


class PromptBatches(keras.utils.PyDataset):
    """Prompts that end: in memory, or a finite data set read once an epoch.

    Args:
        read: callable that returns columns, see `to_columns`.
        encoder: a `PromptEncoder`.
        batch_size: int. Prompts a batch, over all devices and processes.
        order_seed: callable that returns an int or a tuple of ints and seeds
            the order of the coming epoch, or `None` to keep the order.

    Attributes:
        start_epoch: callable that is told of each epoch, with these batches,
            and returns how many of its prompts to pass over, or `None`.

    Raises:
        ValueError: if there are no prompts, or if the batch does not spread
            over the devices.
    """

    is_endless = False

    def __init__(self, read, encoder, batch_size, order_seed=None):
        super().__init__()
        self.start_epoch = None
        self._passed_over = 0
        self.read = read
        self.encoder = encoder
        self.order_seed = order_seed
        self._fresh = False
        self._load()
        self._fresh = True
        check_count("batch_size", batch_size, 1)
        check_spreads(batch_size)
        self.prompts_per_batch = min(batch_size, len(self.order))
        self.rows_per_batch = spreadable(self.prompts_per_batch)

    def _load(self):
        if not self._fresh:
            self.columns = self.encoder.add_token_ids(self.read())
        self._fresh = False
        count = len(self.columns["token_ids"])
        if count == 0:
            raise ValueError(
                "There must be at least one prompt. Received: no prompts"
            )
        self.order = np.arange(count)

    @property
    def num_batches(self):
        left = len(self.order) - self._passed_over
        return -(-left // self.prompts_per_batch)

    @property
    def prompts_per_epoch(self):
        return len(self.order)

    def on_epoch_begin(self):
        self._load()
        if self.start_epoch is not None:
            self._passed_over = self.start_epoch(self)
        if self.order_seed is not None:
            generator = np.random.default_rng(self.order_seed())
            self.order = generator.permutation(self.order)
            if len(self.encoder.buckets) > 1:
                self._bring_buckets_together(generator)

    def _bring_buckets_together(self, generator):
        """Makes whole batches of prompts of one bucket, in random order.

        What is left of a bucket moves on to the next longer one, so that only
        the very last batch may be smaller.
        """
        size, prompts = self.prompts_per_batch, self.columns["token_ids"]
        buckets = np.array(
            [self.encoder.bucket(len(prompts[row])) for row in self.order]
        )
        batches, waiting = [], np.array([], self.order.dtype)
        for bucket in self.encoder.buckets:
            waiting = np.append(waiting, self.order[buckets == bucket])
            whole = len(waiting) - len(waiting) % size
            batches += list(waiting[:whole].reshape(-1, size))
            waiting = waiting[whole:]
        shuffled = [batches[i] for i in generator.permutation(len(batches))]
        self.order = np.concatenate([*shuffled, waiting])

    def __getitem__(self, index):
        start = self._passed_over + index * self.prompts_per_batch
        rows = self.order[start : start + self.prompts_per_batch].tolist()
        token_ids = [self.columns["token_ids"][row] for row in rows]
        return self.encoder.to_batch(token_ids, rows, self.rows_per_batch)

    def fingerprint(self):
        """A number that tells other prompts apart."""
        flat = [token for ids in self.columns["token_ids"] for token in ids]
        return zlib.crc32(np.array(flat, "int32").tobytes()) % 2**31

    def take(self, rows):
        """Returns `(prompts, columns)` of the given row numbers."""
        return take(self.columns, rows)


def to_batches(data, encoder, batch_size=None, order_seed=None):
    """Makes batches of prompts from whatever a user has.

    Args:
        data: list or array of str or of conversations, dict of columns,
            already tokenised prompts (see `to_columns`), rows (see
            `read_rows`), or batches of columns: a `tf.data.Dataset`, a
            grain data set, a PyTorch `DataLoader`, a `keras.utils.PyDataset`
            or another iterable that can be iterated again.
        encoder: a `PromptEncoder`.
        batch_size: int, or `None` for 32. Must be `None` for a data set that
            is batched already.
        order_seed: see `PromptBatches`; used for in-memory prompts only.

    Returns:
        a `PromptBatches`, or a `PromptStream` for an endless data set.

    Raises:
        TypeError, ValueError: see `to_columns` and `PromptEncoder`.
    """
    if isinstance(data, (PromptBatches, PromptStream)):
        return data
    data = read_rows(data)
    if _is_in_memory(data):
        columns = to_columns(data)
        size = 32 if batch_size is None else batch_size
        return PromptBatches(lambda: columns, encoder, size, order_seed)
    if batch_size is not None:
        raise ValueError(
            "`batch_size` must not be given for a data set: it comes in "
            f"batches of its own. Received: batch_size={batch_size}"
        )
    batches = _rewindable(data)
    if _is_endless(batches):
        return PromptStream(batches, encoder)
    first = to_columns(next(iter(batches), {"prompts": []}))
    size = max(len(next(iter(first.values()))), 1)
    return PromptBatches(lambda: _concatenate(batches), encoder, size)


def _is_in_memory(data):
    return isinstance(data, (list, tuple, dict, str, bytes)) or (
        hasattr(data, "__array__") and not hasattr(data, "element_spec")
    )


def _rewindable(data):
    if isinstance(data, keras.utils.PyDataset):
        return _PyDatasetBatches(data)
    if not hasattr(data, "__iter__"):
        raise TypeError(
            "Prompts must be a list or array of strings, a dict of columns, "
            "a tf.data or grain data set, or an iterable of batches. "
            f"Received: {data!r} of type {type(data).__name__}"
        )
    if iter(data) is data:
        raise TypeError(
            "Prompts must be something that can be iterated again for the "
            "next epoch: pass a list, or an object whose `__iter__` starts "
            f"anew. Received: {data!r} of type {type(data).__name__}"
        )
    return data


class _PyDatasetBatches:
    """Iterates over a `keras.utils.PyDataset` of prompt columns."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return self.dataset.num_batches

    def __iter__(self):
        return (self.dataset[i] for i in range(len(self)))


def _is_endless(batches):
    if hasattr(batches, "cardinality"):
        return int(batches.cardinality()) == -1
    return False


def _concatenate(batches):
    columns = collections.defaultdict(list)
    for batch in batches:
        for name, column in to_columns(batch).items():
            columns[name].extend(column)
    return dict(columns)
