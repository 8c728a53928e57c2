"""Position of a run in its data, saved with the weights."""

import contextlib
import json
import pathlib
import warnings

import keras
from keras import ops


class Progress(keras.Layer):
    """Position of a run in its data.

    The order of the prompts in an epoch is determined by the number of prompts
    seen before it, so a few numbers are enough to describe a position. They are
    weights of this layer: whatever saves and restores weights restores the
    position too, and there is no second file that could contradict it.

    Attributes:
        prompts_seen: int32 variable. Number of prompts trained on so far.
        run_start: int32 variable. `prompts_seen` when the run began.
        epoch_start: int32 variable. `prompts_seen` when the epoch began.
        epoch: int32 variable. Number of the current epoch.
        data: int32 variable. Fingerprint of the prompts.
        skipped_in_a_row: int32 variable. Consecutive steps skipped so far.
        is_loaded: bool. Whether weights were loaded since the last epoch
            began.
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
        """Records that `fit` was called."""
        self._is_first_epoch, self._next_epoch = True, None

    def expect_epoch(self, epoch):
        """Records which epoch begins next."""
        self._next_epoch = epoch

    def start_epoch(self, batches):
        """Records that an epoch begins or is resumed.

        Args:
            batches: `PromptBatches` or `PromptStream`, the prompts.

        Returns:
            int. Number of prompts to skip: of the epoch, or of the whole
            stream if it is infinite. `None` if no epoch begins yet: Keras
            builds the model from a first batch before.
        """
        if self._next_epoch is None:
            return None
        seen, first = _int(self.prompts_seen), self._is_first_epoch
        continues = first and self.is_loaded and self._is_of(batches)
        # There are three cases:
        # 1. A new run: the first epoch of this `fit`, without loaded weights or
        #    on other data. Run and epoch both begin at the current count.
        # 2. A new epoch of the current run: a later epoch of this `fit`, or
        #    weights that were saved after the last batch of an epoch. Only the
        #    epoch begins here; an infinite stream continues where it was.
        # 3. The rest of an epoch: weights that were saved in the middle of it.
        #    Both starts stay as loaded, so the difference below is the number
        #    of prompts that the interrupted run has already trained on.
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
        """The epoch in which a loaded run resumes, `None` on other data."""
        if not self.is_loaded or not self._is_of(batches):
            return None
        return _int(self.epoch) + self._is_over(batches)

    def order_seed(self, seed):
        """Seeds the order of the epoch, by the prompts seen before it."""
        return seed, _int(self.epoch_start)

    def left_of_epoch(self, prompts_per_epoch):
        """Number of prompts left in the current epoch."""
        done = _int(self.prompts_seen) - _int(self.epoch_start)
        return prompts_per_epoch - done

    def _is_of(self, batches):
        return _int(self.data) == batches.fingerprint()

    def _is_over(self, batches):
        return self.left_of_epoch(batches.prompts_per_epoch) <= 0


class Resume(keras.callbacks.Callback):
    """Sets the epoch of a restored run from its weights.

    `keras.callbacks.BackupAndRestore` stores the epoch in a second file, which
    may be older than the weights, and which names the wrong epoch if the run
    was resumed before.

    Args:
        progress: a `Progress`.
        batches: `PromptBatches` or `PromptStream`, the prompts.
        callbacks: list of callbacks that come before this one.
    """

    def __init__(self, progress, batches, callbacks):
        super().__init__()
        self.progress = progress
        self.batches = batches
        backup = keras.callbacks.BackupAndRestore
        backups = [c for c in callbacks if isinstance(c, backup)]
        self.is_restoring = bool(backups)
        for callback in backups:
            _remove_if_cut(callback)

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

    def on_epoch_end(self, epoch, logs=None):
        self.model.sync()
        left = self.progress.left_of_epoch(self.batches.prompts_per_epoch)
        is_stopped = self.model.stop_training or self.progress.is_loaded
        if left > 0 and not is_stopped:
            warnings.warn(
                "The epoch has ended before its prompts: a callback or the "
                "data have raised `StopIteration`, which Keras takes for the "
                f"end of the data. Received: {left} prompts left in epoch "
                f"{epoch}",
                stacklevel=2,
            )


@contextlib.contextmanager
def short_epochs(steps_per_epoch):
    """Silences Keras's warning that a resumed epoch has fewer batches."""
    with warnings.catch_warnings():
        if steps_per_epoch is None:
            warnings.filterwarnings("ignore", "Your input ran out of data")
        yield


def _remove_if_cut(backup):
    """Removes the file with the epoch if a kill has cut it.

    Keras writes it in place, after the weights, and could not read it again.
    """
    file = pathlib.Path(backup.backup_dir, "training_metadata.json")
    try:
        int(json.loads(file.read_text())["epoch"])
    except FileNotFoundError:
        return
    except (KeyError, TypeError, ValueError):
        file.unlink(missing_ok=True)


def _int(variable):
    return int(ops.convert_to_numpy(variable))
