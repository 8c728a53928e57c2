"""Epochs and runs in which nothing was scored."""

import math

import keras
from keras import ops

# Callbacks whose attribute `best` is the first value, until one is better.
KEEP_BEST = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.ReduceLROnPlateau,
)


class Unscored(keras.callbacks.Callback):
    """Keeps what has no score from being taken for the best, or for the last.

    It stands before the other callbacks. Keras expects that each epoch has a
    value, and each run an update:

    - The first value that `ModelCheckpoint` and its like monitor is the best so
      far; if it is NaN, no later one is better.
    - An optimizer with `use_ema` ends a run by setting the policy to averages
      of its updates, which are 0 before the first one.

    Args:
        callbacks: list of callbacks that come after this one.
    """

    def __init__(self, callbacks):
        super().__init__()
        self._keep_best = [c for c in callbacks if isinstance(c, KEEP_BEST)]

    def on_train_begin(self, logs=None):
        _start_averages(self.model)

    def on_epoch_begin(self, epoch, logs=None):
        # Other callbacks may load weights in `on_train_begin`.
        _start_averages(self.model)

    def on_train_batch_end(self, batch, logs=None):
        self._forget_nan(logs or {})

    def on_epoch_end(self, epoch, logs=None):
        self._forget_nan(logs or {})

    def _forget_nan(self, logs):
        for callback in self._keep_best:
            now = logs.get(callback.monitor, 0.0)
            if _is_nan(callback.best) and not _is_nan(now):
                callback.best = None


def _start_averages(trainer):
    """Sets an optimizer's averages to the policy before its first update."""
    optimizer = trainer.optimizer
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer.use_ema and trainer.num_updates() == 0:
        averages = optimizer._model_variables_moving_average
        for average, variable in zip(averages, trainer.trainable_variables):
            # On JAX a plain assign would share a buffer that is donated.
            average.assign(ops.copy(variable))


def _is_nan(value):
    return isinstance(value, float) and math.isnan(value)
