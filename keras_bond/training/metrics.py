"""What a step logs, as `keras.metrics` trackers."""

import math

import keras
from keras import ops

# Means over the samples of prompts that were scored, but for the share of
# prompts that were not, and what concerns the update.
NAMES = (
    "reward",
    "reward_std",
    "kl",
    "entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
    "frac_reward_zero_std",
    "frac_prompts_unscored",
    "train/updated_fraction",
    "train/skipped_steps",
)
ANCHOR_NAMES = ("anchor/reward", "bond/win_rate")
REFERENCE_NAMES = ("kl_ref",)


class Deviation(keras.metrics.Metric):
    """Standard deviation of all values seen, weighted."""

    def __init__(self, name, **kwargs):
        super().__init__(name=name, **kwargs)
        self.weight = self.add_variable((), "zeros", name="weight")
        self.total = self.add_variable((), "zeros", name="total")
        self.squares = self.add_variable((), "zeros", name="squares")

    def update_state(self, values, sample_weight):
        weight = ops.cast(sample_weight, self.dtype)
        values = ops.cast(values, self.dtype)
        self.weight.assign_add(ops.sum(weight))
        self.total.assign_add(ops.sum(weight * values))
        self.squares.assign_add(ops.sum(weight * values * values))

    def result(self):
        count = ops.maximum(self.weight, 1.0)
        mean = self.total / count
        return ops.sqrt(ops.maximum(self.squares / count - mean * mean, 0.0))


def make_trackers(more_names, has_reference, has_anchor_samples):
    """Returns a dict of one tracker for each logged number."""
    names = [*more_names, *NAMES]
    if has_anchor_samples:
        names += ANCHOR_NAMES
    if has_reference:
        names += REFERENCE_NAMES
    trackers = {name: keras.metrics.Mean(name) for name in names}
    trackers["train/skipped_steps"] = keras.metrics.Sum("train/skipped_steps")
    trackers["reward_std"] = Deviation("reward_std")
    return trackers


def step_values(batch, log_probs):
    """Computes what describes a batch, one number a prompt or a sample.

    Args:
        batch: dict, see `AnchoredTrainer.rollout` and `targets`.
        log_probs: float tensor `(batch, P)`, `log π(y|x)` of the policy's
            samples.

    Returns:
        dict of float32 tensors `(batch,)` or `(batch, P)`.
    """
    p = log_probs.shape[1]
    rewards, mask = batch["rewards"], batch["mask"][:, :p]
    cut = ops.logical_not(batch["terminated"][:, :p])
    values = {
        "reward": rewards[:, :p],
        "reward_std": rewards[:, :p],
        "kl": _kl(batch, log_probs, "anchor"),
        "entropy": batch["entropies"],
        "completions/mean_length": ops.sum(ops.cast(mask, "int32"), axis=-1),
        "completions/clipped_ratio": cut,
        "frac_reward_zero_std": ops.equal(
            ops.max(rewards, axis=1), ops.min(rewards, axis=1)
        ),
        "frac_prompts_unscored": ops.logical_not(batch["valid"]),
    }
    if rewards.shape[1] > p:
        values.update(_against_anchor(batch, p))
    if "penalised" in batch:
        values["bond/penalised_fraction"] = batch["penalised"]
    if "reference_log_probs" in batch:
        values["kl_ref"] = _kl(batch, log_probs, "reference")
    return {name: ops.cast(value, "float32") for name, value in values.items()}


def _kl(batch, log_probs, name):
    """The exact KL where it was computed, else the log-ratio of the samples."""
    if f"{name}_kls" in batch:
        return batch[f"{name}_kls"]
    return log_probs - batch[f"{name}_log_probs"][:, : log_probs.shape[1]]


def _against_anchor(batch, p):
    mine = batch["rewards"][:, :p, None]
    anchors = batch["rewards"][:, None, p:]
    wins = ops.cast(mine > anchors, "float32")
    ties = ops.cast(ops.equal(mine, anchors), "float32")
    return {
        "anchor/reward": ops.mean(anchors, axis=(1, 2)),
        "bond/win_rate": ops.mean(wins + 0.5 * ties, axis=(1, 2)),
    }


def update(trackers, values, batch):
    """Feeds `values`, one a prompt or a sample, to the trackers they name."""
    for name, value in values.items():
        counted = "present" if name == "frac_prompts_unscored" else "valid"
        weight = ops.cast(batch[counted], "float32")
        if len(value.shape) == 2:
            weight = ops.broadcast_to(weight[:, None], value.shape)
        # What could not be scored may hold anything, a NaN too.
        value = ops.where(weight > 0, value, ops.zeros_like(value))
        trackers[name].update_state(value, sample_weight=weight)


def watch(variables, num_rows=8):
    """Copies a few rows of each variable, to see later whether they moved."""
    return [ops.copy(_some_rows(variable, num_rows)) for variable in variables]


def moved_fraction(variables, before, num_rows=8):
    """Share of the watched values that differ from `before`."""
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
