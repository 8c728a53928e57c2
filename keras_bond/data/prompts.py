"""Batches of tokenized prompts for `fit`, `evaluate` and `predict`.

Strings never enter a compiled step: a batch carries token ids and the index of
each prompt, by which text and other columns are looked up when the completions
are scored.
"""

import dataclasses
import math

import keras
import numpy as np

from keras_bond import backend
from keras_bond.arguments import check_count
from keras_bond.data import given
from keras_bond.data import images
from keras_bond.data import lengths
from keras_bond.data.images import IMAGES
from keras_bond.data.sources import batch_of
from keras_bond.data.sources import num_batches
from keras_bond.data.sources import read_rows
from keras_bond.data.streams import PromptStream
from keras_bond.data.streams import tables_of
from keras_bond.data.table import check_unicode
from keras_bond.data.table import concatenate
from keras_bond.data.table import to_table
from keras_bond.turns import check_several
from keras_bond.turns import is_answer


class PromptEncoder:
    """Turns prompts into padded token ids.

    Args:
        tokenizer: a `TextTokenizer`, or `None` if the policy has none.
        buckets: tuple of int, increasing. Tokens in a padded prompt, start
            token included. Batches are padded to the last one; `cut` shortens
            them to the first that covers their prompts.
        vocabulary_size: int. Token ids that the policy has an embedding for.
        truncate: `None`, or `"left"` to keep the end of a prompt that is too
            long, after its start token.
        image_reader: an `ImageReader`, or `None` if the policy reads text
            only.

    Attributes:
        given_reader: a `GivenReader` where completions that the data give can
            be used, else `None`.

    Raises:
        ValueError: when encoding, for a prompt that is empty or too long or
            has a token outside of the vocabulary, for strings without a
            tokenizer, or for columns that the policy should but cannot read.
    """

    def __init__(
        self,
        tokenizer,
        buckets,
        vocabulary_size,
        truncate=None,
        image_reader=None,
    ):
        self.tokenizer = tokenizer
        self.image_reader = image_reader
        self.given_reader = None
        self.vocabulary_size = vocabulary_size
        self.buckets = tuple(buckets)
        self.max_prompt_length = self.buckets[-1]
        self.truncate = truncate

    def add_token_ids(self, table):
        """Completes a `PromptTable`: token ids, and text if possible."""
        given.check_usable(table.given, self.given_reader)
        table = self._read_images(table)
        token_ids, prompts = table.token_ids, table.prompts
        if token_ids is None and self.tokenizer is None:
            raise ValueError(
                "`policy` has no tokenizer, so prompts must be tokenized: "
                'pass {"token_ids": ..., "padding_mask": ...}, or build the '
                "policy with a preprocessor. Received: strings"
            )
        conversations = table.conversations
        if conversations is not None and prompts is None:
            conversations, prompts = self._render(conversations, table.origin)
        if token_ids is None:
            token_ids = self._encode(prompts, table.origin)
        if table.given:
            given.check_whole(token_ids, self.max_prompt_length, table.origin)
        counts = [len(row) for row in table.columns.get(IMAGES, [])]
        token_ids = [
            self._fit(ids, num_images, table.origin.name(i))
            for i, (ids, num_images) in enumerate(
                zip(token_ids, counts or [0] * len(token_ids))
            )
        ]
        if prompts is None and self.tokenizer is not None:
            prompts = self.tokenizer.decode(token_ids)
        table = dataclasses.replace(
            table,
            token_ids=token_ids,
            prompts=prompts,
            conversations=conversations,
        )
        return self.given_reader.read(table) if table.given else table

    def _render(self, conversations, origin):
        """Returns the conversations as they are read, and their texts."""
        read, texts = [], []
        for i, turns in enumerate(conversations):
            try:
                text = self.tokenizer.render(turns)
                check_unicode(text)
            except (TypeError, ValueError) as error:
                raise origin.error(error, i) from None
            read.append(_as_read(turns, text, self.tokenizer.chat.strips))
            texts.append(text)
        return read, texts

    def _read_images(self, table):
        images.check_columns(table.columns, self.image_reader)
        if IMAGES not in table.columns:
            return table
        column = self.image_reader.standardize(
            table.columns[IMAGES], table.origin
        )
        return dataclasses.replace(
            table, columns={**table.columns, IMAGES: column}
        )

    def _encode(self, prompts, origin):
        images.check_placeholders(prompts, self.image_reader, origin)
        if self.image_reader is not None:
            prompts = self.image_reader.expand(prompts)
        return self.tokenizer.encode(prompts, origin)

    def _fit(self, ids, num_images, name):
        if len(ids) == 0:
            raise ValueError(
                "A prompt must have at least one token. "
                f"Received: an empty prompt, {name}"
            )
        lengths.check_ids(ids, self.vocabulary_size, name)
        if self.image_reader is not None:
            self.image_reader.check_tokens(ids, num_images, name)
        if len(ids) <= self.max_prompt_length:
            return ids
        if num_images:
            raise ValueError(
                "A prompt with images must fit into `max_prompt_length` "
                "tokens, as its images cannot be truncated: raise it, or "
                f"shorten the text. Received: {name} with {len(ids)} tokens, "
                f"{self.image_reader.tokens_per_image} of them for each of "
                f"{num_images} images, max_prompt_length="
                f"{self.max_prompt_length}"
            )
        if self.truncate is None:
            raise ValueError(
                "Every prompt must fit into `max_prompt_length` tokens: raise "
                'it, or pass truncate="left" to keep the end of long prompts. '
                f"Received: {name} with {len(ids)} tokens, "
                f"max_prompt_length={self.max_prompt_length}"
            )
        start = self.tokenizer.start if self.tokenizer is not None else []
        return lengths.truncate_left(ids, self.max_prompt_length, start)

    def bucket(self, length):
        """The shortest padded length that covers a prompt."""
        return next(b for b in self.buckets if b >= length)

    def cut(self, inputs):
        """Shortens a batch to the bucket that covers its prompts.

        `to_batch` cannot do this: `tf.data`, by which Keras feeds TensorFlow,
        needs batches of one shape.

        Args:
            inputs: dict of arrays or tensors, see `to_batch`.

        Returns:
            `inputs` with shorter `prompt_ids`.
        """
        if len(self.buckets) == 1:
            return inputs
        bucket = self.bucket(int(keras.ops.max(inputs["prompt_lengths"])))
        return {**inputs, "prompt_ids": inputs["prompt_ids"][:, :bucket]}

    def to_batch(self, table, indices, batch_size):
        """Pads prompts to one length, and the batch to `batch_size` rows.

        Rows that only fill the batch repeat the last prompt under the index -1
        and are masked out: the last, smaller batch of an epoch has the shape
        of the others and compiles nothing new. If several processes train
        together, each gets its own rows.

        Args:
            table: a `PromptTable` of the prompts, with token ids.
            indices: list of int. Index of each prompt in the data.
            batch_size: int.

        Returns:
            dict of arrays, in a tuple: int32 `prompt_ids` `(rows,
            max_prompt_length)`, and `prompt_lengths`, `prompt_index` (-1 where
            a row only fills the batch) and `index_in_batch`, `(rows,)`; if
            the prompts have images or given completions, what
            `ImageReader.to_arrays` and `GivenReader.to_arrays` return.
        """
        missing = batch_size - len(indices)
        indices = [*indices, *[-1] * missing]
        last = len(table) - 1
        table = table.take([*range(last + 1), *[last] * missing])
        padded = lengths.pad(table.token_ids, self.max_prompt_length)
        inputs = {
            "prompt_ids": padded["token_ids"],
            "prompt_lengths": padded["padding_mask"].sum(1, "int32"),
            "prompt_index": np.array(indices, "int32"),
            "index_in_batch": np.arange(batch_size, dtype="int32"),
        }
        if IMAGES in table.columns:
            inputs |= self.image_reader.to_arrays(
                table.token_ids, table.columns[IMAGES]
            )
        if table.given:
            inputs |= self.given_reader.to_arrays(table.given)
        return ({k: backend.devices.own_rows(v) for k, v in inputs.items()},)


def _as_read(turns, text, strips):
    """The turns, an answer that has begun without spaces that are not read."""
    begun = turns[-1]
    if not is_answer(begun):
        return turns
    # The header of an answer may end in such spaces, too.
    is_header = strips and begun["content"].isspace()
    if text.endswith(begun["content"]) and not is_header:
        return turns
    return [*turns[:-1], {**begun, "content": begun["content"].strip()}]


class PromptBatches(keras.utils.PyDataset):
    """Finite prompts: in memory, or a data set that is read once per epoch.

    Args:
        read: callable that returns the `PromptTable` of an epoch, with token
            ids; in-memory prompts are tokenized once and returned each time.
        encoder: a `PromptEncoder`.
        batch_size: int. Prompts per batch, over all devices and processes.
        order_seed: callable that returns an int or a tuple of ints and seeds
            the order of the coming epoch, or `None` to keep the order.
        row_factor: int. Batches are padded to a multiple of it. Defaults to 1.

    Attributes:
        table: the `PromptTable` of the epoch, with token ids.
        is_full: bool. Whether there are prompts for a whole batch.
        start_epoch: callable that is given these batches at the start of each
            epoch and returns how many of its prompts to skip, or `None`.

    Raises:
        ValueError: if there are no prompts, or if the batch cannot be sharded
            evenly over the devices.
    """

    is_endless = False

    def __init__(
        self, read, encoder, batch_size, order_seed=None, row_factor=1
    ):
        super().__init__()
        self.start_epoch = None
        self._num_skipped = 0
        self.read = read
        self.encoder = encoder
        self.order_seed = order_seed
        self._fresh = False
        self._load()
        self._fresh = True
        check_count("batch_size", batch_size, 1)
        lengths.check_sharding(batch_size)
        self.prompts_per_batch = min(batch_size, len(self.order))
        self.rows_per_batch = lengths.next_multiple(
            lengths.shardable(self.prompts_per_batch), row_factor
        )
        self.is_full = batch_size <= len(self.order)

    def _load(self):
        if not self._fresh:
            self.table = self.read()
        self._fresh = False
        if len(self.table) == 0:
            raise ValueError(
                "There must be at least one prompt. Received: no prompts"
            )
        self.order = np.arange(len(self.table))

    @property
    def num_batches(self):
        left = len(self.order) - self._num_skipped
        return -(-left // self.prompts_per_batch)

    @property
    def prompts_per_epoch(self):
        return len(self.order)

    def on_epoch_begin(self):
        self._load()
        if self.start_epoch is not None:
            self._num_skipped = self.start_epoch(self) or 0
        if self.order_seed is not None:
            generator = np.random.default_rng(self.order_seed())
            self.order = generator.permutation(self.order)
            if len(self.encoder.buckets) > 1:
                self._group_by_bucket(generator)

    def _group_by_bucket(self, generator):
        """Makes full batches of prompts of one bucket, in random order.

        The prompts that remain of a bucket move to the next longer one, so
        that only the very last batch may be smaller.
        """
        size, prompts = self.prompts_per_batch, self.table.token_ids
        buckets = np.array(
            [self.encoder.bucket(len(prompts[i])) for i in self.order]
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
        start = self._num_skipped + index * self.prompts_per_batch
        indices = self.order[start : start + self.prompts_per_batch].tolist()
        return self.encoder.to_batch(
            self.take(indices), indices, self.rows_per_batch
        )

    @property
    def given(self):
        """Names of the columns of completions that the data give."""
        return tuple(self.table.given)

    def fingerprint(self):
        """A number that differs for other prompts."""
        return self.table.fingerprint

    def take(self, indices):
        """Returns a `PromptTable` of the prompts of the given indices."""
        return self.table.take(indices)


def to_batches(
    data,
    encoder,
    batch_size=None,
    order_seed=None,
    row_factor=1,
    steps=None,
    default_size=32,
):
    """Makes batches of prompts from whatever a user has.

    Args:
        data: list or array of str or of conversations, dict of columns, data
            frame, already tokenized prompts (see `to_table`), rows (see
            `read_rows`), or batches of columns: a `tf.data.Dataset`, a
            grain data set, a PyTorch `DataLoader`, a `keras.utils.PyDataset`
            or another iterable that can be iterated again. Rows of an
            iterable, such as a `datasets.IterableDataset`, are batched.
        encoder: a `PromptEncoder`.
        batch_size: int, or `None` for `default_size`. Must be `None` for a data
            set that is batched already.
        order_seed: see `PromptBatches`; used for in-memory prompts only.
        row_factor: see `PromptBatches`.
        steps: int, or `None`. Batches per epoch, if they are counted.
        default_size: int. Batch size of data that are not batched already.
            Defaults to 32.

    Returns:
        a `PromptBatches`, or a `PromptStream` for a data set that is endless,
        or of unknown length while the steps are counted.

    Raises:
        TypeError, ValueError: see `to_table` and `PromptEncoder`.
    """
    if isinstance(data, (PromptBatches, PromptStream)):
        return data
    check_several(data)
    data = read_rows(data)
    if _is_in_memory(data):
        table = encoder.add_token_ids(to_table(data))
        size = default_size if batch_size is None else batch_size
        return PromptBatches(
            lambda: table, encoder, size, order_seed, row_factor
        )
    _check_rewindable(data)
    first, is_row = batch_of(next(iter(data), []))
    if batch_size is not None and not is_row:
        raise ValueError(
            "`batch_size` must not be given for a data set that comes in "
            f"batches of its own. Received: batch_size={batch_size}"
        )
    first = to_table(first)
    size = max(len(first), 1)
    if is_row:
        size = default_size if batch_size is None else batch_size
    length = num_batches(data)
    if length == math.inf or (length is None and steps is not None):
        return PromptStream(data, encoder, size, row_factor, tuple(first.given))
    prompts = PromptBatches(
        lambda: encoder.add_token_ids(concatenate(tables_of(data))),
        encoder,
        size,
        row_factor=row_factor,
    )
    # An only batch may be a last batch too, which has any size.
    prompts.is_full = prompts.num_batches > 1
    return prompts


def to_finite_batches(data, encoder, batch_size):
    """Makes batches of all prompts at once, whatever batches the data have.

    Args:
        data: see `to_batches`.
        encoder: a `PromptEncoder`.
        batch_size: int.

    Returns:
        a `PromptBatches`.

    Raises:
        TypeError, ValueError: see `to_batches`; also if the data are endless.
    """
    is_encoded = isinstance(data, PromptBatches)
    table = data.table if is_encoded else read_finite(data)
    given.check_usable(table.given, None)
    if not is_encoded:
        table = encoder.add_token_ids(table)
    return PromptBatches(lambda: table, encoder, batch_size)


def read_finite(data):
    """Reads all prompts at once, whatever batches the data have.

    Args:
        data: see `to_batches`.

    Returns:
        a `PromptTable`, as `to_table` returns it.

    Raises:
        TypeError, ValueError: see `to_batches`; also if the data are endless.
    """
    check_several(data)
    data = read_rows(data)
    if _is_in_memory(data):
        return to_table(data)
    _check_rewindable(data)
    if num_batches(data) == math.inf:
        raise ValueError(
            "Prompts must end, because all of them get completions: take "
            "some of them first. Received: an endless data set"
        )
    return concatenate(tables_of(data))


def _is_in_memory(data):
    return isinstance(data, (list, tuple, dict, str, bytes)) or (
        hasattr(data, "__array__") and not hasattr(data, "element_spec")
    )


def _check_rewindable(data):
    if not hasattr(data, "__iter__"):
        raise TypeError(
            "Prompts must be a list or array of strings, a dict of columns, "
            "a data frame, a tf.data or grain data set, or an iterable of "
            f"batches. Received: {data!r} of type {type(data).__name__}"
        )
    if isinstance(data, (set, frozenset)):
        raise TypeError(
            "Prompts must have an order, and that of a set differs between "
            "processes: pass sorted(prompts). Received: a "
            f"{type(data).__name__} of {len(data)} prompts"
        )
    if iter(data) is data:
        raise TypeError(
            "Prompts must be something that can be iterated again for the "
            "next epoch: pass a list, or an object whose `__iter__` starts "
            f"anew. Received: {data!r} of type {type(data).__name__}"
        )
