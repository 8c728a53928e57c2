"""Gradient estimators of the Jeffreys divergence, selected by `Bond`.

Each turns a batch of P policy and k anchor samples into coefficients `c_i` of
`∇ log π(y_i)`, one set for the forward and one for the backward KL. The losses
are `-Σ_i sg(c_i) log π(y_i)`. See docs/estimators.md for bias and variance.
"""

from keras import ops

from keras_bond.formulas import averages
from keras_bond.formulas import best_of_n
from keras_bond.formulas import distribution
from keras_bond.formulas import forward_kl
from keras_bond.formulas import jbond
from keras_bond.formulas import learned_quantiles
from keras_bond.formulas import pooled
from keras_bond.formulas import quantile_tables
from keras_bond.formulas import sequences
from keras_bond.training import checks

# Entries of a batch with one value per sample, which are selected together.
PER_SAMPLE = ("completion_ids", "mask", "anchor_log_probs")


class Estimator:
    """Base class of the estimators.

    Args:
        best_of_n: int. Denoted N in the paper.
        num_policy_samples: int, P.
        num_anchor_samples: int, k.

    Raises:
        ValueError: if the sample counts do not fit the estimator.
    """

    name = None
    baseline_kind = "mixed"
    centers_kl = True

    def __init__(self, best_of_n, num_policy_samples, num_anchor_samples):
        self.best_of_n = best_of_n
        self.num_policy_samples = num_policy_samples
        self.num_anchor_samples = num_anchor_samples
        if best_of_n > num_anchor_samples:
            raise ValueError(
                "`best_of_n` must not exceed `num_anchor_samples`, because the "
                "best of N is picked from these samples: draw more, or distill "
                "a smaller N from a moving anchor. Received: "
                f"best_of_n={best_of_n}, "
                f"num_anchor_samples={num_anchor_samples}"
            )

    def needs_other_prompts(self):
        """Whether the baseline is computed from other prompts only."""
        return self.baseline_kind == "batch" or self.num_policy_samples == 1

    def targets(self, batch):
        """Computes what depends only on the rewards of a batch, by their ranks.

        Args:
            batch: dict of tensors; `ranks`, `tie_breakers` `(batch, P + k)`.

        Returns:
            dict of tensors that are added to the batch or replace its entries.
        """
        raise NotImplementedError

    def forward(self, batch, outputs, log_ratios):
        """Coefficients that descend `KL(π_BoN ‖ π)`.

        Args:
            batch: dict of tensors, with `targets`.
            outputs: dict of tensors, what the trainer's `call` returned.
            log_ratios: float tensor `(batch, samples)`, `log π - log π_anchor`
                without gradient; policy samples come first.

        Returns:
            float tensor `(batch, samples)`.
        """
        raise NotImplementedError

    def backward(self, batch, outputs, log_ratios):
        """Coefficients that descend `KL(π ‖ π_BoN)`, see `forward`."""
        p = self.num_policy_samples
        returns = jbond.backward_returns(
            self.backward_rewards(batch, outputs), log_ratios[:, :p]
        )
        advantages = returns - self.baseline(returns, batch)
        others = log_ratios.shape[1] - p
        return ops.pad(advantages / p, [(0, 0), (0, others)])

    def backward_rewards(self, batch, outputs):
        """Returns `(N-1) r_BOND` of the policy samples, `(batch, P)`."""
        return batch["backward_rewards"]

    def baseline(self, values, batch):
        """Returns the baseline of values `(batch, P)`, in the same shape."""
        return averages.baseline(values, batch["valid"], self.baseline_kind)

    def split(self, tensor):
        """Splits `(batch, P + k)` into policy and anchor samples."""
        p = self.num_policy_samples
        return tensor[:, :p], tensor[:, p:]

    def rewards_by_rank(self, batch, make_table, tie_breakers=None):
        """Looks up the backward reward by anchor samples beaten and tied."""
        policy, anchor = self.split(batch["ranks"])
        table = make_table(anchor.shape[1])
        counts = quantile_tables.count_beaten(policy, anchor, tie_breakers)
        table = quantile_tables.tie_table(table, self.best_of_n)
        return quantile_tables.look_up(table, *counts)


class Pooled(Estimator):
    """Uses all P + k samples for both KLs; for N = 2 only.

    Balance-heuristic weights let each sample estimate expectations under both
    policy and anchor, see `keras_bond/formulas/pooled.py`.
    """

    name = "pooled"

    def __init__(self, best_of_n, num_policy_samples, num_anchor_samples):
        if best_of_n != 2:
            raise ValueError(
                '`estimator="pooled"` holds for `best_of_n=2` only: use '
                f'"control_variate". Received: best_of_n={best_of_n}'
            )
        super().__init__(best_of_n, num_policy_samples, num_anchor_samples)

    def needs_other_prompts(self):
        return False

    def targets(self, batch):
        return {}

    def forward(self, batch, outputs, log_ratios):
        return pooled.pooled_forward_coefficients(
            batch["ranks"], log_ratios, self.num_policy_samples
        )

    def backward(self, batch, outputs, log_ratios):
        return pooled.pooled_backward_coefficients(
            batch["ranks"],
            log_ratios,
            self.num_policy_samples,
            batch["valid"],
        )


class ControlVariate(Estimator):
    """Order statistics minus a control variate; harmonic quantiles.

    Every anchor sample is weighted by its probability of being the best of N,
    which is unbiased, minus a term of mean 0 that keeps the policy from
    drifting if all rewards are equal.
    """

    name = "control_variate"

    def targets(self, batch):
        _, anchor = self.split(batch["ranks"])
        return {
            "forward_weights": best_of_n.best_of_n_weights(
                anchor, self.best_of_n
            ),
            "backward_rewards": self.rewards_by_rank(
                batch, quantile_tables.harmonic_table
            ),
        }

    def forward(self, batch, outputs, log_ratios):
        p = self.num_policy_samples
        coefficients = forward_kl.control_variate_coefficients(
            batch["forward_weights"], log_ratios[:, p:], batch["valid"]
        )
        return ops.pad(coefficients, [(0, 0), (p, 0)])


class Learned(ControlVariate):
    """`ControlVariate` with quantiles from a model in the backward KL."""

    name = "learned"

    def targets(self, batch):
        _, anchor = self.split(batch["ranks"])
        weights = best_of_n.best_of_n_weights(anchor, self.best_of_n)
        labels = learned_quantiles.quantile_labels(
            batch["ranks"], self.num_policy_samples
        )
        return {"forward_weights": weights, "quantile_labels": labels}

    def backward_rewards(self, batch, outputs):
        logits = outputs["quantile_logits"][:, : self.num_policy_samples]
        log_p = ops.log_sigmoid(ops.stop_gradient(logits))
        return distribution.log_best_of_n_ratio(
            log_p[:, :, 0], log_p[:, :, 1], self.best_of_n
        )


class Paper(Estimator):
    """The paper's estimator: imitates the best sample, with a batch baseline.

    All anchor samples but the best one are removed from the batch. Ties are
    broken at random, because theorem 1 assumes strictly ordered completions.
    """

    name = "paper"
    baseline_kind = "batch"
    centers_kl = False

    # Backward rewards by the number of anchor samples beaten.
    make_table = staticmethod(quantile_tables.harmonic_table)

    def targets(self, batch):
        rewards = self.rewards_by_rank(
            batch, self.make_table, self.split(batch["tie_breakers"])
        )
        return {"backward_rewards": rewards, **self._only_best(batch)}

    def _only_best(self, batch):
        n, p = self.best_of_n, self.num_policy_samples
        _, ranks = self.split(batch["ranks"])
        _, tie_breakers = self.split(batch["tie_breakers"])
        best = jbond.best_sample(ranks[:, :n], tie_breakers[:, :n])
        best = ops.cast(best, "int32")[:, None] + p
        policy = ops.arange(p, dtype="int32")[None]
        policy = ops.tile(policy, (best.shape[0], 1))
        chosen = ops.concatenate([policy, best], axis=1)
        kept = {name: batch[name] for name in PER_SAMPLE if name in batch}
        return sequences.take_samples(kept, chosen)

    def forward(self, batch, outputs, log_ratios):
        p = self.num_policy_samples
        picked = ops.ones_like(log_ratios[:, p:])
        return ops.pad(picked, [(0, 0), (p, 0)])


class MonteCarlo(Paper):
    """`Paper` with the fraction of anchor samples beaten (eq. 10)."""

    name = "monte_carlo"

    make_table = staticmethod(quantile_tables.monte_carlo_table)

    def targets(self, batch):
        rewards = self.rewards_by_rank(batch, self.make_table)
        return {**super().targets(batch), "backward_rewards": rewards}


class JBondPairs(Paper):
    """Algorithm 2 of the paper: `Paper` with the `-log 16` rule of eq. 17.

    With more than two anchor samples, eq. 17 is averaged over all pairs.
    """

    name = "jbond"

    def __init__(self, best_of_n, num_policy_samples, num_anchor_samples):
        if best_of_n != 2:
            raise ValueError(
                '`estimator="jbond"` holds for `best_of_n=2` only: use '
                f'"paper". Received: best_of_n={best_of_n}'
            )
        super().__init__(best_of_n, num_policy_samples, num_anchor_samples)

    make_table = staticmethod(quantile_tables.pairs_table)


BY_NAME = {
    estimator.name: estimator
    for estimator in (
        Pooled,
        ControlVariate,
        Paper,
        MonteCarlo,
        JBondPairs,
        Learned,
    )
}


def get(estimator, best_of_n, num_policy_samples, num_anchor_samples):
    """Returns the estimator for an `estimator=` argument.

    Args:
        estimator: str, a key of `BY_NAME`, or `"auto"`: `"pooled"` if
            `best_of_n` is 2 and the policy is sampled, else
            `"control_variate"`; or a Keras layer that serves as quantile model.
        best_of_n, num_policy_samples, num_anchor_samples: see `Estimator`.

    Raises:
        ValueError: if there is no such estimator, or if the sample counts do
            not fit it.
    """
    counts = (best_of_n, num_policy_samples, num_anchor_samples)
    if not isinstance(estimator, str):
        return Learned(*counts)
    if estimator == "auto":
        pools = best_of_n == 2 and num_policy_samples > 0
        return (Pooled if pools else ControlVariate)(*counts)
    checks.check_one_of("estimator", estimator, ("auto", *BY_NAME))
    return BY_NAME[estimator](*counts)
