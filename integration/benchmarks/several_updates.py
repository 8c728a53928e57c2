"""`Bond` that learns from each batch several times: a study, JAX only.

After the first update the policy is no longer the one that has drawn the
samples. So the balance heuristic, which the pooled estimator weighs them by,
takes the density of the policy that drew them.
"""

from keras import ops

import keras_bond
from keras_bond.formulas import pooled
from keras_bond.formulas.forward_kl import importance_ratios
from keras_bond.formulas.quantile_tables import harmonic_number
from keras_bond.training import estimators


class SeveralUpdates(keras_bond.Bond):
    """See the top of the file.

    Args:
        updates: int. Updates from each batch.
        **kwargs: arguments of `keras_bond.Bond`.
    """

    def __init__(self, *args, updates, **kwargs):
        super().__init__(*args, **kwargs)
        self.updates = updates
        counts = (self.num_policy_samples, self.num_anchor_samples)
        self.estimator = PooledByDrawn(2, *counts)

    def train_step(self, state, data):
        self._put_back(state)
        batch = self.collect(data[0], training=True)
        batch["drawn_log_probs"] = self.run_stage(
            "drawn", lambda batch: self(batch)["log_probs"], batch
        )
        learn = self._learning_stage(state)
        for _ in range(self.updates):
            logs, state = learn(state, batch)
        return {**logs, **self.host_logs()}, state


class PooledByDrawn(estimators.Pooled):
    """Pooled estimator for samples of an earlier policy."""

    def forward(self, batch, outputs, log_ratios):
        n, p = log_ratios.shape[1], self.num_policy_samples
        k = n - p
        drawn = self.drawn_ratios(batch)
        own, others = ops.expand_dims(drawn, -1), ops.expand_dims(drawn, -2)
        density = (
            p * (p - 1) * own * others + p * k * (own + others) + k * (k - 1)
        )
        wins = pooled.wins(batch["ranks"])
        imitated = ops.sum(2.0 * wins / density, axis=-1)
        return imitated - self.weights(batch, log_ratios) / n

    def backward(self, batch, outputs, log_ratios):
        n, p = log_ratios.shape[1], self.num_policy_samples
        wins = pooled.wins(batch["ranks"])
        others = 1.0 - ops.eye(n, dtype="float32")
        as_anchor = n / (p * self.drawn_ratios(batch) + (n - p))
        as_anchor = ops.expand_dims(as_anchor, -2)
        beaten = ops.sum(as_anchor * wins, axis=-1)
        count = ops.sum(as_anchor * others, axis=-1)
        returns = harmonic_number(beaten) - harmonic_number(count) - log_ratios
        weights = self.weights(batch, log_ratios)
        by_prompt, by_batch = pooled._weighted_others(
            weights * returns, weights, batch["valid"]
        )
        advantages = returns - 0.5 * by_prompt - 0.5 * by_batch
        return weights * advantages / n

    def drawn_ratios(self, batch):
        return importance_ratios(
            batch["drawn_log_probs"] - batch["anchor_log_probs"]
        )

    def weights(self, batch, log_ratios):
        """Weight of each sample as one of the policy that learns."""
        n, p = log_ratios.shape[1], self.num_policy_samples
        ratios = importance_ratios(log_ratios)
        return n * ratios / (p * self.drawn_ratios(batch) + (n - p))
