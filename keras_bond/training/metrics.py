"""Metrics of a training step.

Means are taken over the samples of prompts that were scored. An epoch without
any scored prompt has no mean and logs NaN.
"""

import math

import keras
from keras import ops

# `frac_prompts_unscored` is a mean over all prompts, not only the scored ones.
NAMES = (
    "reward",
    "kl",
    "entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
    "frac_reward_zero_std",
    "frac_prompts_unscored",
    "train/updated_fraction",
)
ANCHOR_NAMES = ("anchor/reward", "bond/win_rate")
REFERENCE_NAMES = ("kl_ref",)


class Mean(keras.metrics.Mean):
    """Weighted mean of all values seen, NaN if there are none."""

    def result(self):
        return ops.where(self.count > 0, super().result(), math.nan)


class StandardDeviation(keras.metrics.Metric):
    """Weighted standard deviation of all values seen, NaN if there are none.

    Deviations are taken from the mean of each batch and combined as in Chan,
    Golub and LeVeque (1979). The difference of two large sums of squares would
    lose all its digits if the rewards have a large offset.
    """

    def __init__(self, name, **kwargs):
        super().__init__(name=name, **kwargs)
        self.weight = self.add_variable((), "zeros", name="weight")
        self.mean = self.add_variable((), "zeros", name="mean")
        self.squares = self.add_variable((), "zeros", name="squares")

    def update_state(self, values, sample_weight):
        weight = ops.cast(sample_weight, self.dtype)
        values = ops.cast(values, self.dtype)
        total = ops.sum(weight)
        mean = ops.sum(weight * values) / ops.maximum(total, 1.0)
        squares = ops.sum(weight * ops.square(values - mean))
        together = self.weight + total
        share = total / ops.maximum(together, 1.0)
        difference = mean - self.mean
        between = ops.square(difference) * self.weight * share
        self.squares.assign(self.squares + squares + between)
        self.mean.assign(self.mean + difference * share)
        self.weight.assign(together)

    def result(self):
        variance = self.squares / ops.maximum(self.weight, 1.0)
        return ops.where(self.weight > 0, ops.sqrt(variance), math.nan)


def make_trackers(names, has_reference, has_anchor_samples):
    """Makes one metric for each logged name.

    Args:
        names: list of str. Names that a trainer logs in addition to `NAMES`.
        has_reference: bool. Whether the reference is kept.
        has_anchor_samples: bool. Whether samples are drawn from the anchor.

    Returns:
        dict that maps names to `keras.metrics.Metric`.
    """
    names = [*names, *NAMES]
    if has_anchor_samples:
        names += ANCHOR_NAMES
    if has_reference:
        names += REFERENCE_NAMES
    trackers = {name: Mean(name) for name in names}
    trackers["train/skipped_steps"] = keras.metrics.Sum("train/skipped_steps")
    trackers["reward_std"] = StandardDeviation("reward_std")
    return trackers


def update(trackers, batch, log_probs, terms, is_good=True):
    """Updates the metrics with a batch, unless its step was skipped.

    Args:
        trackers: dict, see `make_trackers`.
        batch: dict of tensors, see `AnchoredTrainer.collect` and `targets`.
        log_probs: float tensor `(batch, P)`, `log π(y|x)` of the policy's
            samples.
        terms: dict that maps the name of each loss term to its values
            `(batch,)`.
        is_good: bool scalar tensor.
    """
    values = {**values_of(batch, log_probs), **terms}
    for name, value in values.items():
        counts = ops.logical_and(batch["valid"], is_good)
        if name == "frac_prompts_unscored":
            counts = batch["present"]
        weight = ops.cast(counts, "float32")
        if len(value.shape) == 2:
            weight = ops.broadcast_to(weight[:, None], value.shape)
        # Values of prompts without a score can be NaN, and 0 * NaN is NaN.
        value = ops.where(weight > 0, ops.cast(value, "float32"), 0.0)
        trackers[name].update_state(value, sample_weight=weight)


def update_loss(metrics, batch, loss, is_good):
    """Updates the loss metric, weighted by the number of prompts averaged.

    Args:
        metrics: list of `keras.metrics.Metric`, the model's metrics; before
            the model is compiled, the loss is not among them.
        batch: dict of tensors, see `update`.
        loss: float scalar tensor.
        is_good: bool scalar tensor.
    """
    weight = ops.cast(ops.logical_and(batch["valid"], is_good), "float32")
    loss = ops.where(is_good, loss, 0.0)
    for metric in metrics:
        if metric.name == "loss":
            metric.update_state(loss, sample_weight=ops.sum(weight))


def values_of(batch, log_probs):
    """Computes the logged values of a batch, per prompt or per sample.

    Args:
        batch, log_probs: see `update`.

    Returns:
        dict of tensors `(batch,)` or `(batch, P)`.
    """
    p = log_probs.shape[1]
    rewards, mask = batch["rewards"], batch["mask"][:, :p]
    values = {
        "reward": rewards[:, :p],
        "reward_std": rewards[:, :p],
        "kl": _kl(batch, log_probs, "anchor"),
        "entropy": batch["entropies"],
        "completions/mean_length": ops.sum(ops.cast(mask, "int32"), axis=-1),
        "completions/clipped_ratio": ops.logical_not(
            batch["terminated"][:, :p]
        ),
        "frac_reward_zero_std": ops.equal(
            ops.max(rewards, axis=1), ops.min(rewards, axis=1)
        ),
        "frac_prompts_unscored": ops.logical_not(batch["valid"]),
    }
    if rewards.shape[1] > p:
        values.update(_against_anchor(rewards[:, :p], rewards[:, p:]))
    if "penalized" in batch:
        values["bond/penalized_fraction"] = batch["penalized"]
    if "reference_log_probs" in batch:
        values["kl_ref"] = _kl(batch, log_probs, "reference")
    return values


def _kl(batch, log_probs, name):
    """The exact KL if it was computed, else the log-ratio of the samples."""
    if f"{name}_kls" in batch:
        return batch[f"{name}_kls"]
    return log_probs - batch[f"{name}_log_probs"][:, : log_probs.shape[1]]


def _against_anchor(policy_rewards, anchor_rewards):
    policy, anchor = policy_rewards[:, :, None], anchor_rewards[:, None, :]
    wins = ops.cast(policy > anchor, "float32")
    ties = ops.cast(ops.equal(policy, anchor), "float32")
    return {
        "anchor/reward": ops.mean(anchor_rewards, axis=1),
        "bond/win_rate": ops.mean(wins + 0.5 * ties, axis=(1, 2)),
    }


def watch(variables, num_rows=8):
    """Copies a few rows of each variable for `moved_fraction`."""
    return [ops.copy(_some_rows(variable, num_rows)) for variable in variables]


def moved_fraction(variables, before, num_rows=8):
    """Fraction of the watched values that differ from `before`."""
    moved, total = 0.0, 0
    for variable, old in zip(variables, before):
        new = _some_rows(variable, num_rows)
        moved += ops.sum(ops.cast(ops.not_equal(new, old), "float32"))
        total += math.prod(old.shape)
    return moved / total


def _some_rows(variable, num_rows):
    value = ops.convert_to_tensor(variable)
    if len(value.shape) < 2:
        return value
    return value[:: max(1, value.shape[0] // num_rows)]
