"""Metrics of a training step.

Means are taken over the samples of prompts that were scored. An epoch without
any scored prompt has no mean and logs NaN.
"""

import itertools
import math

import keras
import numpy as np
from keras import ops

from keras_bond import backend
from keras_bond.formulas import averages
from keras_bond.formulas import rank_correlations
from keras_bond.training import sampling_check

# A mean over all prompts, not only the scored ones.
UNSCORED = "frac_prompts_unscored"
# Numbers of optimizer updates, which an evaluation does not have.
MOVED, SKIPPED = "train/updated_fraction", "train/skipped_steps"
GRADIENT, RATE = "grad_norm", "learning_rate"
UPDATE_NAMES = (MOVED, SKIPPED, GRADIENT, RATE)
NAMES = ("frac_reward_zero_std", UNSCORED, MOVED, GRADIENT)
POLICY_NAMES = (
    "reward",
    "kl",
    "entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
    sampling_check.NAME,
)
ANCHOR_NAMES = ("anchor/reward",)
COMPARED_NAMES = ("bond/win_rate",)
REFERENCE_NAMES = ("kl_ref",)
# Compares samples of the policy with each other.
RANK_CORRELATION = "bond/rank_correlation"


class Mean(keras.metrics.Mean):
    """Weighted mean of all values seen, NaN if there are none."""

    def result(self):
        return ops.where(self.count > 0, super().result(), math.nan)


class Last(Mean):
    """The last value that counted, NaN if there is none."""

    def update_state(self, value, sample_weight):
        """Replaces the value, if its weight is 1 and not 0."""
        keeps = 1.0 - sample_weight
        self.total.assign(self.total * keeps + value * sample_weight)
        self.count.assign(self.count * keeps + sample_weight)


class StandardDeviation(keras.metrics.Metric):
    """Weighted standard deviation of all values seen, NaN if there are none.

    Batches are combined as in Chan, Golub and LeVeque (1979). All deviations
    are taken from the mean of the first batch, which keeps their digits where
    values have a large offset, and of squares only the root is kept, so that
    large values do not overflow.
    """

    def __init__(self, name, **kwargs):
        super().__init__(name=name, **kwargs)
        self.weight = self.add_variable((), "zeros", name="weight")
        self.center = self.add_variable((), "zeros", name="center")
        self.mean = self.add_variable((), "zeros", name="mean")
        self.norm = self.add_variable((), "zeros", name="norm")

    def update_state(self, values, residuals, sample_weight):
        """Adds a batch.

        Args:
            values: float tensor.
            residuals: float tensor of the same shape, what is missing from
                values that were rounded.
            sample_weight: float tensor of the same shape.
        """
        weight = ops.cast(sample_weight, self.dtype)
        total = ops.sum(weight)
        # What does not count may be NaN, and 0 * NaN is NaN.
        values, residuals = (
            ops.where(weight > 0, x, 0.0) for x in (values, residuals)
        )
        shares = weight / ops.maximum(total, 1.0)
        center = ops.where(
            self.weight > 0,
            ops.convert_to_tensor(self.center),
            ops.sum(shares * values),
        )
        deviations = (values - center) + residuals
        mean = ops.sum(shares * deviations)
        norm = backend.global_norm([ops.sqrt(weight) * (deviations - mean)])
        together = self.weight + total
        share = total / ops.maximum(together, 1.0)
        difference = mean - self.mean
        between = ops.absolute(difference) * ops.sqrt(self.weight * share)
        before = ops.convert_to_tensor(self.norm)
        self.norm.assign(ops.hypot(ops.hypot(before, norm), between))
        self.mean.assign(self.mean + difference * share)
        self.center.assign(center)
        self.weight.assign(together)

    def result(self):
        deviation = self.norm / ops.sqrt(ops.maximum(self.weight, 1.0))
        return ops.where(self.weight > 0, deviation, math.nan)


def make_trackers(names, has_reference, num_policy_samples, num_anchor_samples):
    """Makes one metric for each logged name.

    Args:
        names: list of str. Names that a trainer logs in addition to `NAMES`.
        has_reference: bool. Whether the reference is kept.
        num_policy_samples, num_anchor_samples: int. Samples per prompt.

    Returns:
        dict that maps names to `keras.metrics.Metric`.
    """
    has_policy_samples = num_policy_samples > 0
    has_anchor_samples = num_anchor_samples > 0
    logged = {
        NAMES: True,
        POLICY_NAMES: has_policy_samples,
        ANCHOR_NAMES: has_anchor_samples,
        COMPARED_NAMES: has_policy_samples and has_anchor_samples,
        REFERENCE_NAMES: has_policy_samples and has_reference,
        (RANK_CORRELATION,): num_policy_samples > 1,
    }
    groups = [group for group, is_logged in logged.items() if is_logged]
    names = [*names, *itertools.chain(*groups)]
    trackers = {name: Mean(name) for name in names}
    trackers[RATE] = Last(RATE)
    trackers[SKIPPED] = keras.metrics.Sum(SKIPPED)
    if has_policy_samples:
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
    scored = ops.logical_and(batch["valid"], is_good)
    for name, value in values.items():
        counted = batch["present"] if name == UNSCORED else scored
        if name == sampling_check.NAME:
            # Steps are skipped for it, too.
            finite = ops.all(ops.isfinite(value), axis=1)
            counted = ops.logical_and(batch["valid"], finite)
        weight = _weights(counted, value)
        # Values of prompts without a score can be NaN, and 0 * NaN is NaN.
        value = ops.where(weight > 0, ops.cast(value, "float32"), 0.0)
        trackers[name].update_state(value, sample_weight=weight)
    p = log_probs.shape[1]
    if not p:
        return
    rewards, residuals = (
        batch[name][:, :p] for name in ("rewards", "reward_residuals")
    )
    trackers["reward_std"].update_state(
        rewards, residuals, sample_weight=_weights(scored, rewards)
    )
    if RANK_CORRELATION in trackers:
        found = _rank_correlation(batch, log_probs, scored)
        is_known = ops.logical_not(ops.isnan(found))
        trackers[RANK_CORRELATION].update_state(
            ops.where(is_known, found, 0.0),
            sample_weight=ops.cast(is_known, "float32"),
        )


def _weights(counts, values):
    """1 for values of prompts that count, 0 for others."""
    weights = ops.cast(counts, "float32")
    if len(values.shape) == 2:
        weights = ops.broadcast_to(weights[:, None], values.shape)
    return weights


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


def of_evaluation(logs, trackers):
    """What an evaluation logs: nothing of updates, no loss without a score.

    In training such a loss is 0, as `keras.callbacks.TerminateOnNaN` ends runs
    whose loss is NaN.

    Args:
        logs: dict of all logged values.
        trackers: dict, see `make_trackers`.
    """
    logs = {k: v for k, v in logs.items() if k not in UPDATE_NAMES}
    if "loss" in logs:
        has_scores = trackers[UNSCORED].result() < 1
        logs["loss"] = ops.where(has_scores, logs["loss"], math.nan)
    return logs


def values_of(batch, log_probs):
    """Computes the logged values of a batch, per prompt or per sample.

    Args:
        batch, log_probs: see `update`.

    Returns:
        dict of tensors `(batch,)`, `(batch, P)` or `(batch, k)`.
    """
    p = log_probs.shape[1]
    rewards, ranks = batch["rewards"], batch["ranks"]
    values = {
        "frac_reward_zero_std": ops.equal(ops.max(ranks, axis=1), 0.0),
        UNSCORED: ops.logical_not(batch["valid"]),
    }
    if p:
        values |= _of_policy_samples(batch, log_probs)
    if rewards.shape[1] > p:
        values["anchor/reward"] = rewards[:, p:]
    if 0 < p < rewards.shape[1]:
        values["bond/win_rate"] = _win_rate(ranks[:, :p], ranks[:, p:])
    return values


def _of_policy_samples(batch, log_probs):
    p = log_probs.shape[1]
    lengths = ops.sum(ops.cast(batch["mask"][:, :p], "float32"), axis=-1)
    values = {
        "reward": batch["rewards"][:, :p],
        "kl": _kl(batch, log_probs, "anchor"),
        "entropy": batch["entropies"],
        "completions/mean_length": lengths,
        "completions/clipped_ratio": ops.logical_not(
            batch["terminated"][:, :p]
        ),
        sampling_check.NAME: _sampling_differences(batch, log_probs),
    }
    if "penalized" in batch:
        values["bond/penalized_fraction"] = batch["penalized"]
    if "reference_log_probs" in batch:
        values["kl_ref"] = _kl(batch, log_probs, "reference")
    return values


def sampling_difference(batch, log_probs):
    """Mean of `sampling_check.NAME` over the valid prompts, a float scalar."""
    differences = ops.mean(_sampling_differences(batch, log_probs), axis=1)
    known = ops.logical_and(batch["valid"], ops.isfinite(differences))
    return averages.masked_mean(differences, known)


def _sampling_differences(batch, log_probs):
    """Nats per token between drawing samples and learning from them."""
    p = log_probs.shape[1]
    lengths = ops.sum(ops.cast(batch["mask"][:, :p], "float32"), axis=-1)
    difference = ops.absolute(log_probs - batch["sampling_log_probs"][:, :p])
    return difference / ops.maximum(lengths, 1.0)


def _kl(batch, log_probs, name):
    """The exact KL if it was computed, else the log-ratio of the samples."""
    if f"{name}_kls" in batch:
        return batch[f"{name}_kls"]
    return log_probs - batch[f"{name}_log_probs"][:, : log_probs.shape[1]]


def _win_rate(policy, anchor):
    """Share of the anchor's samples that a prompt's policy samples beat."""
    policy, anchor = policy[:, :, None], anchor[:, None, :]
    wins = ops.cast(policy > anchor, "float32")
    ties = ops.cast(ops.equal(policy, anchor), "float32")
    return ops.mean(wins + 0.5 * ties, axis=(1, 2))


def _rank_correlation(batch, log_probs, scored):
    """How well the policy has learned the order of a prompt's answers."""
    p, ranks = log_probs.shape[1], batch["ranks"]
    anchor, sampling = (
        batch[f"{name}_log_probs"][:, :p] for name in ("anchor", "sampling")
    )
    return rank_correlations.rank_correlation(
        rank_correlations.mid_ranks(ranks)[:, :p],
        log_probs - anchor,
        rank_correlations.rounding_of(log_probs, sampling),
        scored,
    )


def watch_update(variables, optimizer):
    """What an update changes, before it.

    Args:
        variables: list of `keras.Variable`, the trained ones.
        optimizer: `keras.optimizers.Optimizer`.

    Returns:
        dict of tensors: a copy of a few rows of each variable, the rate of the
        next update, and the factor of the loss whose gradient it is given.
    """
    one = ops.ones((), "float32")
    return {
        "weights": [ops.copy(_some_rows(variable)) for variable in variables],
        "rate": one * optimizer.learning_rate,
        "scale": ops.cast(optimizer.scale_loss(one), "float32"),
    }


def log_update(trackers, before, norm, is_good, variables, updated):
    """Updates the metrics with an update.

    Args:
        trackers: dict, see `make_trackers`.
        before: dict, see `watch_update`.
        norm: float scalar tensor. Norm of the gradient of the scaled loss.
        is_good: bool scalar tensor. Whether the optimizer used the gradient.
        variables: list of `keras.Variable`, the trained ones.
        updated: bool scalar tensor. Whether the optimizer has changed them: it
            may accumulate gradients.
    """
    is_good, updated = (ops.cast(x, "float32") for x in (is_good, updated))
    trackers[MOVED].update_state(
        _moved_fraction(variables, before["weights"]), sample_weight=updated
    )
    # A norm that does not count may be infinite, and 0 * inf is NaN.
    norm = ops.where(is_good > 0, norm / before["scale"], 0.0)
    trackers[GRADIENT].update_state(norm, sample_weight=is_good)
    trackers[RATE].update_state(before["rate"], sample_weight=updated)


def _moved_fraction(variables, before):
    """Fraction of the watched values that differ from `before`."""
    moved, total = 0.0, 0
    for variable, old in zip(variables, before):
        new = _some_rows(variable)
        moved += ops.sum(ops.cast(ops.not_equal(new, old), "float32"))
        total += math.prod(old.shape)
    return moved / total


def _some_rows(variable, num_rows=8):
    value = ops.convert_to_tensor(variable)
    if len(value.shape) < 2:
        return value
    return value[:: max(1, value.shape[0] // num_rows)]


class RewardMetrics:
    """Means of what reward functions log with `log_metric`.

    Names and values come from Python that is not compiled, so they are no
    variables of the model. With several processes, each has its own.
    """

    PREFIX = "rewards/"

    def __init__(self):
        self.reset()

    def reset(self):
        """Begins an epoch."""
        self._step = {}
        self._sums = {}

    def add(self, values):
        """Adds values of the current step.

        Args:
            values: dict of lists of float.
        """
        for name, new in values.items():
            self._step.setdefault(name, []).extend(new)

    def end_step(self):
        """Ends the current step.

        Returns:
            dict: for each name, the mean over the steps of the epoch in which
            it was logged, where the value of a step is the mean of its values.
            NaN does not count; where nothing counts, the mean is NaN.
        """
        for name, values in self._step.items():
            total, count = self._sums.get(name, (0.0, 0))
            values = [value for value in values if not math.isnan(value)]
            if values:
                total, count = total + np.mean(values), count + 1
            self._sums[name] = total, count
        self._step = {}
        return {
            self.PREFIX + name: total / count if count else math.nan
            for name, (total, count) in self._sums.items()
        }


class LogsRewardMetrics:
    """Mixin for `keras.Model` that reports the metrics of reward functions.

    It uses `reward_metrics`, a `RewardMetrics`, and `pace`, a `backend.Pace`.
    """

    def host_logs(self):
        """What reward functions have logged, see `Step.host_logs`."""
        return self.reward_metrics.end_step()

    def reset_metrics(self):
        """Begins an epoch or an evaluation, see `keras.Model`."""
        super().reset_metrics()
        self.reward_metrics.reset()
        self.pace.reset()
