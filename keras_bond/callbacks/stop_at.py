"""A callback that ends training where a logged number reaches a value."""

import math

import keras

from keras_bond.arguments import is_number


class StopAt(keras.callbacks.Callback):
    """Ends training once a logged number has reached a value.

    Keras's `EarlyStopping` waits until a number gets no better. This callback
    stops at a price or a goal: a KL to the initial policy that you are willing
    to pay, or an effective N that is enough.

    Args:
        monitor: str. Name of a logged number, such as `"kl_ref"` or
            `"held_out/effective_n"`.
        value: float. Training ends when the number is `value` or beyond.
        mode: `"max"` if the number grows towards `value`, `"min"` if it falls.
            Defaults to `"max"`.
        verbose: 0 or 1. Whether to print why training ended. Defaults to 1.

    The number is looked at after each epoch, for the values that `fit` logs are
    means over the epoch: pass `steps_per_epoch` for short epochs. Put `StopAt`
    behind the callback that logs the number, such as `HeldOut`. Where it is
    NaN, as the reward of an epoch that could not be scored, training continues.

    Raises:
        TypeError, ValueError: if an argument is out of range; and after the
            first epoch, if no such number is logged.

    Example:

    ```python
    stop = keras_bond.callbacks.StopAt("kl_ref", 0.6)
    bond.fit(prompts, epochs=100, callbacks=[stop])
    ```
    """

    def __init__(self, monitor, value, mode="max", verbose=1):
        super().__init__()
        if not isinstance(monitor, str):
            raise TypeError(
                "`monitor` must be the name of a logged number, such as "
                f"'kl_ref'. Received: monitor={monitor!r}"
            )
        if not is_number(value):
            raise ValueError(
                f"`value` must be a finite number. Received: value={value!r}"
            )
        if mode not in ("max", "min"):
            raise ValueError(
                "`mode` must be 'max' if the number grows towards `value` or "
                f"'min' if it falls. Received: mode={mode!r}"
            )
        self.monitor, self.value, self.mode = monitor, float(value), mode
        self.verbose = verbose

    def on_epoch_end(self, epoch, logs=None):
        number = self._number(logs or {})
        beyond = number - self.value
        if self.mode == "min":
            beyond = -beyond
        if math.isnan(beyond) or beyond < 0:
            return
        self.model.stop_training = True
        if self.verbose:
            print(
                f"\nTraining ends after epoch {epoch + 1}: {self.monitor} is "
                f"{number:.4g}, and {self.value:g} was asked for."
            )

    def _number(self, logs):
        if self.monitor not in logs:
            hint = ""
            if self.monitor == "kl_ref":
                hint = " `kl_ref` needs `reference=True` or LoRA."
            raise ValueError(
                "`monitor` of `StopAt` must be a number that `fit` or a "
                f"callback before it logs.{hint} Received: "
                f"monitor={self.monitor!r}, logged are {sorted(logs)}"
            )
        return float(logs[self.monitor])
