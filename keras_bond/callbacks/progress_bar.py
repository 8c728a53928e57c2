"""Progress bar with reward, KL and win rate."""

import shutil
import sys

import keras

from keras_bond.arguments import check_list
from keras_bond.callbacks.checks import as_list

# Shown if they are logged, the most important first; and if they are not 0.
SHOWN = (
    "reward",
    "kl_ref",
    "bond/win_rate",
    "kl",
    "held_out/effective_n",
    "held_out/gold_reward",
)
# Shown by trainers that draw no samples of the policy.
SHOWN_WITHOUT_REWARD = ("loss", "anchor/reward")
SHOWN_IF_NOT_ZERO = ("frac_prompts_unscored", "train/skipped_steps")
VALIDATION = "val_"
# Columns that Keras's bar takes besides its counters: the bar itself and times
# such as `12s 345ms/step`; and columns of a number with what separates it.
BAR, NUMBER = 37, 12


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Shows reward, KL and win rate instead of all logged numbers.

    `fit` and `evaluate` of the trainers add it by default; pass one to choose
    the numbers, or a `keras.callbacks.ProgbarLogger` for all of them.
    `History`, `TensorBoard` and `CSVLogger` get all of them in any case. In a
    terminal, the bar of a running epoch shows as many of them as fit into a
    line, because a longer one could not be overwritten.

    Args:
        names: list of str, logged names. Those of validation are shown with
            them. Defaults to reward, KL, win rate, what `HeldOut` measures,
            and prompts or steps that are skipped, if there are any.

    Raises:
        TypeError: if `names` is not a list of str.

    Example:

    ```python
    bar = keras_bond.callbacks.ProgressBar(["reward", "entropy"])
    bond.fit(prompts, callbacks=[bar])
    ```
    """

    def __init__(self, names=None):
        super().__init__()
        if names is not None:
            check_list("names", names, "logged names")
            for name in names:
                if not isinstance(name, str):
                    raise TypeError(
                        "`names` must be logged names, such as "
                        f'["reward", "kl"]. Received: names={names!r}'
                    )
        self.names = names

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, self._fitting(logs))

    def on_test_batch_end(self, batch, logs=None):
        super().on_test_batch_end(batch, self._fitting(logs))

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, self._shown(logs))

    def on_test_end(self, logs=None):
        super().on_test_end(self._shown(logs))

    def _fitting(self, logs):
        """What is shown, or as much of it as fits into a line of a terminal."""
        shown = self._shown(logs)
        in_terminal = hasattr(sys.stdout, "isatty") and sys.stdout.isatty()
        if self.names is not None or not in_terminal:
            return shown
        room = shutil.get_terminal_size().columns
        room -= BAR + 2 * len(str(self.target or 0))
        fitting = {}
        for name, value in shown.items():
            width = NUMBER + len(name)
            if width <= room:
                fitting[name] = value
                room -= width
        return fitting

    def _shown(self, logs):
        logs = logs or {}
        names = self.names
        if names is None:
            names = SHOWN if "reward" in logs else SHOWN + SHOWN_WITHOUT_REWARD

        def place(name):
            if name in SHOWN_IF_NOT_ZERO:
                return -1
            return names.index(name) if name in names else len(names)

        shown = [k for k, v in logs.items() if self._is_shown(k, v, names)]
        return {name: logs[name] for name in sorted(shown, key=place)}

    def _is_shown(self, name, value, names):
        name = name.removeprefix(VALIDATION)
        if name in names:
            return True
        return self.names is None and name in SHOWN_IF_NOT_ZERO and value != 0


def with_progress_bar(callbacks, verbose):
    """Adds a `ProgressBar` if one is wanted and the user passes none.

    Args:
        callbacks: what a user passes to `fit` or `evaluate`.
        verbose: as in `keras.Model.fit`.

    Returns:
        the same, or a list of `keras.callbacks.Callback`.
    """
    if verbose == 0:
        return callbacks
    callbacks = as_list(callbacks)
    bar = keras.callbacks.ProgbarLogger
    if any(isinstance(c, bar) for c in callbacks):
        return callbacks
    return [*callbacks, ProgressBar()]
