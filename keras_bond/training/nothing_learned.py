"""A line that says when a run has learned nothing so far."""

import math

import keras
from keras import ops

from keras_bond.training.learning_rates import is_rising

# Nats per sequence. Rounding and the noise of few samples stay below.
SMALL_KL = 1e-3
# Optimizer updates before which nobody can tell.
FEWEST_UPDATES = 20


class NothingLearned(keras.callbacks.Callback):
    """Says once that a run should have a higher learning rate.

    Nothing was learned if an epoch ends with a KL to the anchor, and to the
    reference where it is kept, of nearly 0, while the policy beats the anchor
    as often as it loses, up to the noise of the epoch. While the learning rate
    is being warmed up, or once an epoch has shown progress, this says nothing;
    without a reference also for an anchor that follows within a few updates,
    and for a resumed run. Baselines do not log how often they win.

    Args:
        is_shown: bool. Whether to print the line.
    """

    def __init__(self, is_shown):
        super().__init__()
        self.is_shown = is_shown

    def on_train_begin(self, logs=None):
        self._prompts_before = _int(self.model.prompts_seen)
        self._updates_before = self.model.num_updates()

    def on_epoch_end(self, epoch, logs=None):
        if not self.is_shown or "bond/win_rate" not in (logs or {}):
            return
        self.model.sync()
        prompts = _int(self.model.prompts_seen) - self._prompts_before
        self._prompts_before += prompts
        scored = prompts * (1.0 - logs.get("frac_prompts_unscored", 0.0))
        if scored <= 0 or not self._can_tell(logs):
            return
        if self._is_nothing(scored, logs):
            print("\nnothing was learned yet: raise the learning rate")
        self.is_shown = False

    def _can_tell(self, logs):
        updates = self.model.num_updates() - self._updates_before
        if updates < FEWEST_UPDATES or is_rising(self.model.optimizer):
            return False
        if "kl_ref" in logs:
            return True
        return not self._updates_before and self._anchor_waits()

    def _anchor_waits(self):
        anchor = self.model.anchor
        rate = float(ops.convert_to_numpy(anchor.update_rate))
        return _int(anchor.every) >= FEWEST_UPDATES * rate

    def _is_nothing(self, scored, logs):
        kls = [abs(logs[name]) for name in ("kl", "kl_ref") if name in logs]
        error = win_rate_error(
            self.model.num_policy_samples, self.model.num_anchor_samples
        )
        gain = abs(logs["bond/win_rate"] - 0.5)
        return max(kls) < SMALL_KL and gain <= 2 * error / math.sqrt(scored)


def win_rate_error(num_policy, num_anchor):
    """Standard deviation of a prompt's win rate if both are one policy.

    That of the Mann-Whitney statistic without ties, which only lower it.
    """
    pairs = num_policy * num_anchor
    return math.sqrt((num_policy + num_anchor + 1) / (12 * pairs))


def _int(variable):
    return int(ops.convert_to_numpy(variable))
