"""Where a run is in its data, kept with the weights."""

import keras
import numpy as np
from keras import ops

# What `Progress.place` holds.
RUN_START, EPOCH_START, EPOCH, PROMPTS = range(4)


class Progress(keras.Layer):
    """Says with which prompt a loaded run goes on.

    The prompts of an epoch and their order follow from the prompts seen at its
    start, so a few numbers are a position. They are weights: what saves and
    restores weights keeps the position too, and no second file can disagree
    with it.

    Args:
        prompts_seen: int32 `keras.Variable` that the training step moves.
    """

    def __init__(self, prompts_seen):
        super().__init__(name="progress")
        # A function, so that Keras does not track the variable a second time.
        self._prompts_seen = lambda: _int(prompts_seen)
        self.place = self._numbers("place", (4,))
        self.skipped_in_a_row = self._numbers("skipped_in_a_row", ())
        self.is_loaded = False
        self.is_first = True
        self.epoch = None
        self.built = True

    def _numbers(self, name, shape):
        return self.add_weight(
            name=name,
            shape=shape,
            dtype="int32",
            trainable=False,
            initializer="zeros",
        )

    def load_own_variables(self, store):
        # Files of version 0.1 and before hold no position.
        if len(store.keys()):
            super().load_own_variables(store)
        self.is_loaded = True

    def start_run(self):
        """Notes that `fit` was called."""
        self.is_first, self.epoch = True, None

    def start_epoch(self, batches):
        """Notes that an epoch starts, or goes on where it was left.

        Args:
            batches: `PromptBatches` or `PromptStream`, the prompts.

        Returns:
            int. Prompts to pass over: of the epoch, or of an endless stream.
        """
        if self.epoch is None:
            # Keras takes a look at the data before a run begins.
            return 0
        seen = self._prompts_seen()
        place = self._place()
        goes_on = self.is_first and self.is_loaded and self._is_of(batches)
        if self.is_first and not goes_on:
            place[RUN_START] = seen
        if not goes_on or self._is_over(batches):
            place[EPOCH_START] = seen
        self.is_loaded = self.is_first = False
        place[EPOCH] = self.epoch
        place[PROMPTS] = batches.fingerprint()
        self.place.assign(place)
        return seen - place[RUN_START if batches.is_endless else EPOCH_START]

    def epoch_to_run(self, batches):
        """The epoch that a loaded run goes on with, `None` if of other data."""
        if not self.is_loaded or not self._is_of(batches):
            return None
        return self._place()[EPOCH] + self._is_over(batches)

    def order_seed(self):
        """The prompts seen at the start of the epoch."""
        return self._place()[EPOCH_START]

    def left_of_epoch(self, prompts_per_epoch):
        """Prompts of the running epoch that are still to come."""
        done = self._prompts_seen() - self._place()[EPOCH_START]
        return prompts_per_epoch - done

    def _is_of(self, batches):
        return self._place()[PROMPTS] == batches.fingerprint()

    def _is_over(self, batches):
        return self.left_of_epoch(batches.prompts_per_epoch) <= 0

    def _place(self):
        return [int(x) for x in ops.convert_to_numpy(self.place)]


class Resume(keras.callbacks.Callback):
    """Makes the weights say which epoch a restored run is in.

    The file that `keras.callbacks.BackupAndRestore` writes beside the weights
    may be older than they are, and names the wrong epoch in a run that was
    resumed before.

    Args:
        progress: a `Progress`.
        batches: `PromptBatches` or `PromptStream`, the prompts.
        is_restoring: bool. Whether such a callback is among the others.
    """

    def __init__(self, progress, batches, is_restoring):
        super().__init__()
        self.progress = progress
        self.batches = batches
        self.is_restoring = is_restoring

    def on_train_begin(self, logs=None):
        if not self.is_restoring:
            return
        if not self.progress.is_loaded:
            self.model._initial_epoch = None
            return
        epoch = self.progress.epoch_to_run(self.batches)
        if epoch is not None:
            self.model._initial_epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.progress.epoch = epoch


def _int(variable):
    return int(np.asarray(ops.convert_to_numpy(variable)))
