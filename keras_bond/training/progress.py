"""Position of a run in its data, kept with the weights."""

import keras
from keras import ops


class Progress(keras.Layer):
    """Tells with which prompt a loaded run continues.

    The prompts of an epoch and their order follow from the prompts seen at its
    start, so a few numbers are a position. They are weights: what saves and
    restores weights keeps the position too, and no second file can disagree
    with it.

    Attributes:
        prompts_seen: int32 variable. Prompts that the run has learned from.
        run_start: int32 variable. `prompts_seen` when the run began.
        epoch_start: int32 variable. `prompts_seen` when the epoch began.
        epoch: int32 variable. Number of the running epoch.
        data: int32 variable. Fingerprint of the prompts.
        skipped_in_a_row: int32 variable. Steps that were skipped one after
            the other until now.
        is_loaded: bool. Whether the weights were loaded since the last epoch.
    """

    def __init__(self):
        super().__init__(name="progress")
        self.prompts_seen = self._number("prompts_seen")
        self.run_start = self._number("run_start")
        self.epoch_start = self._number("epoch_start")
        self.epoch = self._number("epoch")
        self.data = self._number("data")
        self.skipped_in_a_row = self._number("skipped_in_a_row")
        self.is_loaded = False
        self._is_first_epoch = True
        self._next_epoch = None
        self.built = True

    def _number(self, name):
        return self.add_weight(
            name=name,
            shape=(),
            dtype="int32",
            trainable=False,
            initializer="zeros",
        )

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.is_loaded = True

    def start_run(self):
        """Notes that `fit` was called."""
        self._is_first_epoch, self._next_epoch = True, None

    def expect_epoch(self, epoch):
        """Notes which epoch starts next."""
        self._next_epoch = epoch

    def start_epoch(self, batches):
        """Notes that an epoch starts, or continues where it was left.

        Args:
            batches: `PromptBatches` or `PromptStream`, the prompts.

        Returns:
            int. Prompts to pass over: of the epoch, or of an endless stream.
        """
        if self._next_epoch is None:
            # Keras takes a look at the data before a run begins.
            return 0
        seen, first = _int(self.prompts_seen), self._is_first_epoch
        continues = first and self.is_loaded and self._is_of(batches)
        # A run of its own, a new epoch of this one, or the rest of an epoch.
        if first and not continues:
            self.run_start.assign(seen)
        if not continues or self._is_over(batches):
            self.epoch_start.assign(seen)
        self.is_loaded = self._is_first_epoch = False
        self.epoch.assign(self._next_epoch)
        self.data.assign(batches.fingerprint())
        start = self.run_start if batches.is_endless else self.epoch_start
        return seen - _int(start)

    def epoch_to_run(self, batches):
        """The epoch with which a loaded run continues; `None` on other data."""
        if not self.is_loaded or not self._is_of(batches):
            return None
        return _int(self.epoch) + self._is_over(batches)

    def order_seed(self):
        """The prompts seen at the start of the epoch."""
        return _int(self.epoch_start)

    def left_of_epoch(self, prompts_per_epoch):
        """Prompts of the running epoch that are still to come."""
        done = _int(self.prompts_seen) - _int(self.epoch_start)
        return prompts_per_epoch - done

    def _is_of(self, batches):
        return _int(self.data) == batches.fingerprint()

    def _is_over(self, batches):
        return self.left_of_epoch(batches.prompts_per_epoch) <= 0


class Resume(keras.callbacks.Callback):
    """Lets the weights decide which epoch a restored run is in.

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
        self.progress.expect_epoch(epoch)


def _int(variable):
    return int(ops.convert_to_numpy(variable))
