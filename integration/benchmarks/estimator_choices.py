"""The estimators that are compared, as coefficients of samples.

A superset of what `keras_bond.Bond` offers, put together from
`keras_bond.formulas`. Exact quantiles take the place of a learned quantile
model, as its limit.
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

TABLES = {
    "pairs": quantile_tables.pairs_table,
    "harmonic": quantile_tables.harmonic_table,
    "monte_carlo": quantile_tables.monte_carlo_table,
}
TIES = ("random", "strict", "midrank")
EXACT = "exact"
POOLED = {
    "forward": "pooled",
    "backward": "pooled",
    "quantiles": "harmonic",
    "ties": "midrank",
    "baseline": "mixed",
}
# `jeffreys_beta` of the parts of the gradient.
PARTS = {"forward": 0.0, "backward": 1.0, "whole": 0.5}
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
    """One estimator of one part of the gradient; the paper's by default.

    Attributes:
        part: str, a key of `PARTS`.
        name: str.
        num_policy_samples: int, P.
        num_anchor_samples: int, k.
        best_of_n: int. Denoted N in the paper.
        forward: str, `"best_sample"`, `"order_statistics"`,
            `"control_variate"`, `"density_ratio"` or `"pooled"`.
        backward: str, `"policy_samples"` or `"pooled"`.
        quantiles: str, a key of `TABLES` or `EXACT`.
        ties: str, of `TIES`.
        baseline: str, see `keras_bond.formulas.baseline`.
    """

    part: str
    name: str
    num_policy_samples: int
    num_anchor_samples: int
    best_of_n: int = 2
    forward: str = "best_sample"
    backward: str = "policy_samples"
    quantiles: str = "pairs"
    ties: str = "random"
    baseline: str = "batch"

    @property
    def split(self):
        return self.num_policy_samples, self.num_anchor_samples

    def fits(self):
        """Whether the numbers of samples and N suit the choices."""
        (p, k), n = self.split, self.best_of_n
        counts = ("best_sample", "order_statistics", "control_variate")
        return not (
            (self.forward in counts and n > k)
            or (n != 2 and "pooled" in (self.forward, self.backward))
            or (n != 2 and self.quantiles == "pairs")
            or (k < 2 and self.quantiles in ("pairs", "harmonic"))
            or (p < 2 and self.baseline == "prompt")
        )

    def tie_table(self):
        """Rewards by the numbers of anchor samples beaten and tied with."""
        k, n = self.num_anchor_samples, self.best_of_n
        table = TABLES[self.quantiles](k)
        if self.ties != "strict":
            return quantile_tables.tie_table(table, n)
        # The printed `<` of eq. 17 and `<=` of eq. 10: a tie is a win.
        return [
            [
                (n - 1) * table[c + t] if c + t <= k else 0.0
                for t in range(k + 1)
            ]
            for c in range(k + 1)
        ]

    def coefficients(self, batch):
        """Coefficients of `∇ log π` `(prompts, P + k)`, see `Bond`."""
        beta = PARTS[self.part]
        result = 0.0
        if beta < 1:
            result += (1 - beta) * forward_coefficients(self, batch)
        if beta > 0:
            result += beta * backward_coefficients(self, batch)
        return result

    def exact(self, scene):
        """The gradient of the divergence itself."""
        n = self.best_of_n
        return self._mix(
            forward_gradient(scene, n),
            backward_gradient(scene, exact_returns(scene, n)),
        )

    def expected(self, scene):
        """What the estimator is meant to estimate; NaN where unknown."""
        return self._mix(
            forward_gradient(scene, self.best_of_n),
            backward_gradient(scene, expected_returns(self, scene)),
        )

    def _mix(self, forward, backward):
        beta = PARTS[self.part]
        return forward if beta == 0 else (1 - beta) * forward + beta * backward


def compared(split):
    """All estimators that go with P + k samples.

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
    made = (
        Estimator(part, name, *split, **settings)
        for part, name, settings in candidates
    )
    return tuple(estimator for estimator in made if estimator.fits())


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
    counted = itertools.product((2, 4), TABLES, TIES)
    kinds = [*counted, (2, EXACT, "midrank"), (4, EXACT, "midrank")]
    for (n, kind, ties), baseline in itertools.product(
        kinds, averages.BASELINES
    ):
        if n > 2 and baseline != "mixed":
            continue
        quantiles = EXACT if kind == EXACT else f"{kind}, {ties}"
        settings = {
            "best_of_n": n,
            "forward": "density_ratio" if kind == EXACT else "best_sample",
            "quantiles": kind,
            "ties": ties,
            "baseline": baseline,
        }
        yield "backward", f"{quantiles}, {baseline}", settings
    yield "backward", "pooled", POOLED


def forward_coefficients(estimator, batch):
    """The forward part of the gradient, `(prompts, P + k)`."""
    (p, k), kind = estimator.split, estimator.forward
    log_ratios, anchors = batch["log_ratios"], batch["rewards"][:, p:]
    if kind == "pooled":
        return pooled.pooled_forward_coefficients(
            batch["rewards"], log_ratios, p
        )
    if kind == "best_sample":
        tie_breakers = batch["tie_breakers"][:, p:]
        weights = forward_kl.best_sample_weights(
            anchors,
            estimator.best_of_n,
            None if estimator.ties == "strict" else tie_breakers,
        )
    elif kind == "density_ratio":
        weights = ops.exp(exact_log_ratio(estimator, batch)[:, p:]) / k
    else:
        weights = formulas.best_of_n_weights(anchors, estimator.best_of_n)
    if kind in ("control_variate", "density_ratio"):
        weights = forward_kl.control_variate_coefficients(
            weights, log_ratios[:, p:], batch["valid"]
        )
    return ops.pad(weights, [(0, 0), (p, 0)])


def backward_coefficients(estimator, batch):
    """The backward part of the gradient, `(prompts, P + k)`."""
    p, k = estimator.split
    if estimator.backward == "pooled":
        return pooled.pooled_backward_coefficients(
            batch["rewards"], batch["log_ratios"], p, batch["valid"]
        )
    if estimator.quantiles == EXACT:
        rewards = exact_log_ratio(estimator, batch)[:, :p]
    else:
        ties = batch["tie_breakers"]
        counts = quantile_tables.count_beaten(
            batch["rewards"][:, :p],
            batch["rewards"][:, p:],
            (ties[:, :p], ties[:, p:]) if estimator.ties == "random" else None,
        )
        rewards = quantile_tables.look_up(estimator.tie_table(), *counts)
    returns = formulas.backward_returns(rewards, batch["log_ratios"][:, :p])
    advantages = returns - formulas.baseline(
        returns, batch["valid"], estimator.baseline
    )
    return ops.pad(advantages / p, [(0, 0), (0, k)])


def exact_log_ratio(estimator, batch):
    return formulas.log_best_of_n_ratio(
        batch["log_p_le"], batch["log_p_lt"], estimator.best_of_n
    )


def expected_returns(estimator, scene):
    """Exact expectation of the returns, by summing over all counts.

    Of k anchor samples `(beaten, tied, better)` are multinomial. Ties broken at
    random make them binomial given the tie-breaker of the completion, over
    which a quadrature integrates exactly.

    Returns:
        float array `(prompts, outcomes)`, NaN for pooled estimators, whose
        weights depend on all samples.
    """
    if estimator.backward == "pooled":
        return np.full_like(scene.policy, np.nan)
    if estimator.quantiles == EXACT:
        return exact_returns(scene, estimator.best_of_n)
    p_le, p_lt = quantiles(scene.anchor, scene.rewards)
    table = np.array(estimator.tie_table())
    if estimator.ties == "random":
        nodes, weights = np.polynomial.legendre.leggauss(12)
        rewards = sum(
            weight / 2 * _mean_of_table(table, p_lt + u * (p_le - p_lt), 0.0)
            for u, weight in zip((nodes + 1) / 2, weights)
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
