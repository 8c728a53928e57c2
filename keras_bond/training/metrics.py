"""What a step logs, as `keras.metrics` trackers."""

import math

import keras
from keras import ops

# Means over the prompts that were scored.
NAMES = (
    "forward_kl_loss",
    "backward_kl_loss",
    "reward",
    "reward_std",
    "anchor/reward",
    "bond/win_rate",
    "bond/penalised_fraction",
    "kl",
    "kl_ref",
    "entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
    "frac_reward_zero_std",
    "train/updated_fraction",
)


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


def make_trackers(has_reference):
    """Returns a dict of one tracker for each logged number."""
    names = [name for name in NAMES if has_reference or name != "kl_ref"]
    trackers = {name: keras.metrics.Mean(name) for name in names}
    trackers["reward_std"] = Deviation("reward_std")
    return trackers


def step_values(batch, log_probs):
    """Computes what describes a batch of samples, one number a prompt.

    Args:
        batch: dict, see `JBond.targets`.
        log_probs: float tensor `(batch,)`, `log π(y|x)` of the policy samples.

    Returns:
        dict of float32 tensors `(batch,)`.
    """
    rewards = batch["rewards"]
    mine, anchors = rewards[:, :1], rewards[:, 1:]
    wins = ops.cast(mine > anchors, "float32")
    ties = ops.cast(ops.equal(mine, anchors), "float32")
    spread = ops.max(rewards, axis=1) - ops.min(rewards, axis=1)
    lengths = ops.sum(ops.cast(batch["mask"][:, 0], "float32"), axis=-1)
    values = {
        "reward": rewards[:, 0],
        "reward_std": rewards[:, 0],
        "anchor/reward": ops.mean(anchors, axis=1),
        "bond/win_rate": ops.mean(wins + 0.5 * ties, axis=1),
        "bond/penalised_fraction": batch["penalised"],
        "kl": log_probs - batch["anchor_log_probs"],
        "entropy": batch["entropies"],
        "completions/mean_length": lengths,
        "completions/clipped_ratio": ops.logical_not(batch["terminated"][:, 0]),
        "frac_reward_zero_std": ops.equal(spread, 0.0),
    }
    if "reference_log_probs" in batch:
        values["kl_ref"] = log_probs - batch["reference_log_probs"]
    return {name: ops.cast(value, "float32") for name, value in values.items()}


def update(trackers, values, valid):
    """Feeds `values`, one number a prompt, to the trackers of their names."""
    valid = ops.cast(valid, "float32")
    for name, value in values.items():
        # What could not be scored may hold anything, a NaN too.
        value = ops.where(valid > 0, value, ops.zeros_like(value))
        trackers[name].update_state(value, sample_weight=valid)


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
