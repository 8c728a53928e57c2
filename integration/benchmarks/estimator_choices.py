"""Every estimator that `keras_bond.Bond` offers, as coefficients of samples.

What is written here is what `Bond` does with a batch, without its network; a
learned quantile model is stood in for by exact quantiles, its limit.
"""

import dataclasses
import itertools

import numpy as np
from estimator_world import backward_gradient
from estimator_world import exact_returns
from estimator_world import forward_gradient
from estimator_world import quantiles
from keras import ops
from scipy.stats import multinomial

from keras_bond import formulas
from keras_bond.formulas import averages
from keras_bond.formulas import forward_kl
from keras_bond.formulas import pooled
from keras_bond.formulas import quantile_tables
from keras_bond.training import estimators

PAPER = {
    "best_of_n": 2,
    "forward": "best_sample",
    "backward": "policy_samples",
    "quantiles": "pairs",
    "ties": "random",
    "baseline": "batch",
    "kl_estimator": "log_ratio",
}
POOLED = {
    "forward": "pooled",
    "backward": "pooled",
    "quantiles": "harmonic",
    "ties": "midrank",
    "baseline": "mixed",
}
# `jeffreys_beta` of the parts of the gradient.
PARTS = {"forward": 0.0, "backward": 1.0, "whole": 0.5}
EXACT = estimators.MODEL
# The gradient of Jeffreys' divergence as a whole; the first is the paper's.
RECIPES = {
    "paper": {},
    "order_statistics + pairs": {"forward": "order_statistics"},
    "control_variate + pairs": {"forward": "control_variate"},
    "control_variate + pairs, mixed": {
        "forward": "control_variate",
        "baseline": "mixed",
    },
    "control_variate + harmonic, mixed": {
        "forward": "control_variate",
        "quantiles": "harmonic",
        "ties": "midrank",
        "baseline": "mixed",
    },
    "exact quantiles, mixed": {
        "forward": "density_ratio",
        "quantiles": EXACT,
        "baseline": "mixed",
    },
    "pooled": POOLED,
}


@dataclasses.dataclass(frozen=True)
class Estimator:
    """One estimator of one part of the gradient.

    Attributes:
        part: str, a key of `PARTS`.
        name: str.
        choice: `keras_bond`'s `Estimators`.
    """

    part: str
    name: str
    choice: estimators.Estimators

    @property
    def split(self):
        choice = self.choice
        return choice.num_policy_samples, choice.num_anchor_samples

    def coefficients(self, batch):
        """Coefficients of `∇ log π` `(prompts, P + k)`, see `Bond`."""
        beta = PARTS[self.part]
        result = 0.0
        if beta < 1:
            result += (1 - beta) * forward_coefficients(self.choice, batch)
        if beta > 0:
            result += beta * backward_coefficients(self.choice, batch)
        return result

    def exact(self, scene):
        """The gradient of the divergence itself."""
        n = self.choice.best_of_n
        return self._mix(
            forward_gradient(scene, n),
            backward_gradient(scene, exact_returns(scene, n)),
        )

    def expected(self, scene):
        """What the estimator is meant to estimate; NaN where unknown."""
        returns = expected_returns(self.choice, scene)
        return self._mix(
            forward_gradient(scene, self.choice.best_of_n),
            backward_gradient(scene, returns),
        )

    def _mix(self, forward, backward):
        beta = PARTS[self.part]
        return forward if beta == 0 else (1 - beta) * forward + beta * backward


def make(part, name, split, **settings):
    """An estimator with the paper's settings but for the given ones."""
    choice = estimators.Estimators(
        num_policy_samples=split[0],
        num_anchor_samples=split[1],
        **{**PAPER, **settings},
    )
    return Estimator(part, name, choice)


def offered(split):
    """All estimators that go with P + k samples, as the library allows.

    Args:
        split: pair of int, P and k.

    Returns:
        tuple of `Estimator`.
    """
    candidates = [
        *_forward_candidates(),
        *_backward_candidates(),
        *(("whole", name, settings) for name, settings in RECIPES.items()),
    ]
    found = []
    for part, name, settings in candidates:
        try:
            found.append(make(part, name, split, **settings))
        except ValueError:
            # The library refuses it, for instance Best-of-4 of 2 samples.
            continue
    return tuple(found)


def _forward_candidates():
    kinds = {
        "best_sample": {},
        "best_sample, first of ties": {"ties": "strict"},
        "order_statistics": {"forward": "order_statistics"},
        "control_variate": {"forward": "control_variate"},
        "density_ratio, exact": {
            "forward": "density_ratio",
            "quantiles": EXACT,
        },
        "pooled": POOLED,
    }
    for n, (name, settings) in itertools.product((2, 4), kinds.items()):
        # Pairs are for N = 2, and unused in the forward part.
        free = {"quantiles": "monte_carlo", **settings, "best_of_n": n}
        yield "forward", name, free


def _backward_candidates():
    counted = itertools.product(
        (2, 4), ("pairs", "harmonic", "monte_carlo"), estimators.TIES
    )
    kinds = [*counted, (2, EXACT, "midrank"), (4, EXACT, "midrank")]
    for (n, kind, ties), baseline in itertools.product(
        kinds, averages.BASELINES
    ):
        if n > 2 and baseline != "mixed":
            continue
        quantiles = "exact" if kind == EXACT else f"{kind}, {ties}"
        settings = {
            "best_of_n": n,
            "forward": "density_ratio" if kind == EXACT else "best_sample",
            "quantiles": kind,
            "ties": ties,
            "baseline": baseline,
        }
        yield "backward", f"{quantiles}, {baseline}", settings
    yield "backward", "pooled", POOLED


def forward_coefficients(choice, batch):
    """The forward part of `Bond`'s gradient, `(prompts, P + k)`."""
    p, kind = choice.num_policy_samples, choice.forward
    log_ratios, anchors = batch["log_ratios"], batch["rewards"][:, p:]
    if kind == "pooled":
        return pooled.pooled_forward_coefficients(
            batch["rewards"], log_ratios, p
        )
    if kind == "best_sample":
        strict = choice.ties == "strict"
        lots = None if strict else batch["tie_breakers"][:, p:]
        weights = forward_kl.best_sample_weights(
            anchors, choice.best_of_n, lots
        )
    elif kind == "density_ratio":
        ratio = ops.exp(exact_log_ratio(choice, batch)[:, p:])
        weights = ratio / choice.num_anchor_samples
    else:
        weights = formulas.best_of_n_weights(anchors, choice.best_of_n)
    if kind in ("control_variate", "density_ratio"):
        weights = forward_kl.control_variate_coefficients(
            weights, log_ratios[:, p:], batch["valid"]
        )
    return ops.pad(weights, [(0, 0), (p, 0)])


def backward_coefficients(choice, batch):
    """The backward part of `Bond`'s gradient, `(prompts, P + k)`."""
    p, k = choice.num_policy_samples, choice.num_anchor_samples
    if choice.backward == "pooled":
        return pooled.pooled_backward_coefficients(
            batch["rewards"], batch["log_ratios"], p, batch["valid"]
        )
    if choice.uses_model:
        rewards = exact_log_ratio(choice, batch)[:, :p]
    else:
        lots = batch["tie_breakers"]
        counts = quantile_tables.count_beaten(
            batch["rewards"][:, :p],
            batch["rewards"][:, p:],
            (lots[:, :p], lots[:, p:]) if choice.ties == "random" else None,
        )
        rewards = quantile_tables.look_up(choice.tie_table(), *counts)
    returns = formulas.backward_returns(rewards, batch["log_ratios"][:, :p])
    advantages = returns - formulas.baseline(
        returns, batch["valid"], choice.baseline
    )
    return ops.pad(advantages / p, [(0, 0), (0, k)])


def exact_log_ratio(choice, batch):
    return formulas.log_best_of_n_ratio(
        batch["log_p_le"], batch["log_p_lt"], choice.best_of_n
    )


def expected_returns(choice, scene):
    """Exact expectation of the returns, by summing over all counts.

    Of k anchor samples `(beaten, tied, better)` are multinomial; ties broken
    at random make them binomial given the lot of the completion, over which a
    quadrature integrates exactly.

    Returns:
        float array `(prompts, outcomes)`, NaN for pooled estimators, whose
        weights depend on all samples.
    """
    if choice.backward == "pooled":
        return np.full_like(scene.policy, np.nan)
    if choice.uses_model:
        return exact_returns(scene, choice.best_of_n)
    p_le, p_lt = quantiles(scene.anchor, scene.rewards)
    table = np.array(choice.tie_table())
    if choice.ties == "random":
        nodes, weights = np.polynomial.legendre.leggauss(12)
        rewards = sum(
            weight / 2 * _mean_of_table(table, p_lt + lot * (p_le - p_lt), 0.0)
            for lot, weight in zip((nodes + 1) / 2, weights)
        )
    else:
        rewards = _mean_of_table(table, p_lt, p_le - p_lt)
    return rewards - np.log(scene.policy / scene.anchor)


def _mean_of_table(table, p_beaten, p_tied):
    k = len(table) - 1
    better = np.clip(1.0 - p_beaten - p_tied, 0.0, 1.0)
    chances = np.stack(
        [p_beaten, np.broadcast_to(p_tied, p_beaten.shape), better], axis=-1
    )
    chances = chances / chances.sum(axis=-1, keepdims=True)
    return sum(
        table[c, t] * multinomial.pmf([c, t, k - c - t], k, chances)
        for c in range(k + 1)
        for t in range(k + 1 - c)
    )
