"""Reward, win rate, KL and effective N for each weight of `interpolate`."""

import dataclasses
import math
import warnings

import numpy as np

from keras_bond.arguments import check_count
from keras_bond.arguments import check_list
from keras_bond.arguments import is_number
from keras_bond.evaluation.checks import check_scored
from keras_bond.evaluation.comparison import count_beaten
from keras_bond.evaluation.frontier import best_of_n_frontier
from keras_bond.evaluation.log_quantile import harmonic
from keras_bond.evaluation.log_quantile import n_from_harmonic

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
# What is measured, and its heading.
NUMBERS = {
    "reward": "reward",
    "win_rate": "win rate",
    "kl": "KL",
    "effective_n": "effective N",
}
SHOWN_NS = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class WeightFront:
    """What policies between, and beyond, two sets of weights are worth.

    `print(front)` shows a table, and `keras_bond.evaluation.plot_weight_front`
    draws it.

    Attributes:
        rows: list of dicts, one for each weight in increasing order: `weight`;
            `reward`, `win_rate`, `kl` and `effective_n`, each followed by its
            standard error, such as `reward_error`; `effective_samples`, per
            prompt; and `is_direct`, whether they were drawn for this weight.
        frontier: list of dicts, Best-of-N of the initial policy, see
            `keras_bond.evaluation.best_of_n_frontier`.
    """

    rows: list
    frontier: list

    def weight(self, *, effective_n=None, kl=None, win_rate=None, reward=None):
        """Chooses the weight for which one of the numbers has a given value.

        Between the weights that were measured, the number is interpolated. If
        several weights reach the value, the smallest is returned.

        Args:
            effective_n, kl, win_rate, reward: float. Exactly one of them.

        Returns:
            float, for `interpolate` of the trainer.

        Raises:
            ValueError: if not exactly one is given, or no weight reaches it.

        Example:

        ```python
        bond.interpolate(front.weight(effective_n=4.0))
        ```
        """
        given = {
            "effective_n": effective_n,
            "kl": kl,
            "win_rate": win_rate,
            "reward": reward,
        }
        given = {k: v for k, v in given.items() if v is not None}
        if len(given) != 1 or not is_number(*given.values()):
            raise ValueError(
                "`weight` needs one number: `effective_n`, `kl`, `win_rate` or "
                f"`reward`. Received: {given}"
            )
        ((name, target),) = given.items()
        points = [(row["weight"], row[name]) for row in self.rows]
        points = [point for point in points if math.isfinite(point[1])]
        for (weight, value), (other, other_value) in zip(points, points[1:]):
            if min(value, other_value) <= target <= max(value, other_value):
                way = other_value - value
                share = (target - value) / way if way else 0.0
                return float(weight + share * (other - weight))
        values = [value for _, value in points]
        raise ValueError(
            f"`{name}` must be a value that some weight reaches: measure other "
            "`weights` (up to 4, at a higher cost in KL), or train for longer. "
            f"Received: {name}={target}, and {min(values):.3f} to "
            f"{max(values):.3f} for weights from {points[0][0]:g} to "
            f"{points[-1][0]:g}"
        )

    def __str__(self):
        headings = ["weight", *NUMBERS.values(), "effective samples"]
        lines = [headings, *(_cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths))
            for line in lines
        )


def _cells(row):
    numbers = [(row[name], row[f"{name}_error"]) for name in NUMBERS]
    numbers = [f"{value:.3f} ± {error:.3f}" for value, error in numbers]
    samples = f"{row['effective_samples']:.0f}"
    samples += " (direct)" * row["is_direct"]
    return [f"{row['weight']:g}", *numbers, samples]


def weight_front(
    trainer,
    prompts,
    weights=WEIGHTS,
    num_samples=32,
    batch_size=None,
    min_effective_samples=None,
):
    """Measures the policies that `trainer.interpolate` makes, on one bank.

    Train once, and choose the effective N, or the KL, afterwards. Samples of
    the initial and of the trained policy are drawn and scored once. Each of
    them counts for a weight as often as `π_weight / (½ π_initial + ½
    π_trained)` says (self-normalized importance weights with the balance
    heuristic, Veach and Guibas, 1995), with the bias of the ratio removed by
    the jackknife. Where few of the samples count, new ones are drawn from the
    policy itself. The KL is exact over the vocabulary at each token.

    Standard errors are over prompts, the independent units: they say how much
    the numbers vary with other prompts and other samples. Differences between
    weights, on the same prompts and samples, are known more precisely. After
    the call, or an exception, the policy of the trainer is as before.

    Args:
        trainer: a trainer of `keras_bond` that keeps the initial policy: with
            LoRA, or with `reference=True`.
        prompts: held-out prompts, as in `fit`, a hundred or more for small
            errors. Prompts of which a completion cannot be scored do not
            count.
        weights: list of float in [0, 4]. Defaults to 0 to 2 in steps of 0.25.
        num_samples: int, at least 3. Samples of both policies per prompt.
            Defaults to 32.
        batch_size: int. Prompts, or completions, at a time. Defaults to 32.
        min_effective_samples: float. With fewer effective samples per prompt,
            `(Σ w)² / Σ w²` of the importance weights w, `num_samples` new ones
            are drawn for a weight. Defaults to half of `num_samples`.

    Returns:
        `WeightFront`.

    Raises:
        TypeError: if `trainer` has no `interpolate`.
        ValueError: if it does not keep the initial policy, an argument is out
            of range, or fewer than two prompts can be scored.

    Example:

    ```python
    front = keras_bond.evaluation.weight_front(bond, held_out)
    print(front)  # then, say, bond.interpolate(front.weight(kl=0.6))
    ```
    """
    _check_trainer(trainer)
    check_list("weights", weights, "numbers between 0 and 4")
    check_count("num_samples", num_samples, 3)
    least = min_effective_samples
    least = num_samples / 2 if least is None else least
    if not weights or not all(is_number(w, 0, 4) for w in weights):
        raise ValueError(
            "`weights` must be numbers between 0, the initial policy, and 4; "
            f"1 is the trained policy. Received: weights={weights!r}"
        )
    if not is_number(least, 0):
        raise ValueError(
            "`min_effective_samples` must be a number of at least 0. "
            f"Received: min_effective_samples={least!r}"
        )
    before = trainer.interpolate(1.0)
    try:
        with warnings.catch_warnings():
            # The table says what larger weights cost.
            warnings.filterwarnings("ignore", "A `weight` above")
            bank = _Bank(trainer, prompts, num_samples, batch_size)
            rows = [bank.row(w, least) for w in sorted(set(weights))]
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A `weight` above")
            trainer.interpolate(before)
    ns = [n for n in SHOWN_NS if n < num_samples]
    return WeightFront(rows, best_of_n_frontier(bank.pool, ns))


class _Bank:
    """Scored samples of the initial and of the trained policy.

    Args:
        trainer: is left at another weight.
        prompts, num_samples, batch_size: see `weight_front`.

    Attributes:
        pool: float64 array `(prompts, num_samples)`, rewards of the initial
            policy on the prompts that count.
    """

    def __init__(self, trainer, prompts, num_samples, batch_size):
        self._trainer = trainer
        self._prompts = prompts
        self._num_samples = num_samples
        self._batch_size = batch_size
        policy_samples, policy_rewards = self._draw("policy", 0)
        samples, rewards = self._draw("reference", 1)
        self._samples = (samples, policy_samples)
        self._rewards = np.concatenate([rewards, policy_rewards], axis=1)
        self._scored = np.isfinite(self._rewards).all(axis=1)
        check_scored("weight_front", self._scored)
        self._all_initial = rewards
        self.pool = rewards[self._scored]
        self._read = {}
        both = [self._log_probs_and_kls(weight)[0] for weight in (0.0, 1.0)]
        self._log_mixture = np.logaddexp(*both) - math.log(2.0)

    def row(self, weight, min_effective_samples):
        """What the policy at a weight is worth, see `WeightFront.rows`."""
        log_probs, kls = self._log_probs_and_kls(weight)
        ratios = np.exp(log_probs - self._log_mixture)[self._scored]
        effective = _effective_samples(ratios)
        if effective < min_effective_samples:
            return self._direct_row(weight)
        pool, n = self.pool, self._num_samples
        rewards = self._rewards[self._scored]
        # Samples of the initial policy are compared with the others of them,
        # those of the trained policy with as many.
        beaten, tied = count_beaten(rewards[:, :n], pool)
        counts = beaten, tied - 1
        others = count_beaten(rewards[:, n:], pool[:, 1:])
        counts = [np.concatenate(x, axis=1) for x in zip(counts, others)]
        numbers = _numbers(ratios, rewards, kls[self._scored], counts, n - 1)
        return {
            "weight": float(weight),
            **numbers,
            "effective_samples": effective,
            "is_direct": False,
        }

    def _direct_row(self, weight):
        self._trainer.interpolate(weight)
        samples, rewards = self._draw("policy", 2)
        kls = self._trainer.kls_of(samples, batch_size=self._batch_size)
        kls = np.asarray(kls, "float64").reshape(rewards.shape)
        scored = self._scored & np.isfinite(rewards).all(axis=1)
        check_scored("weight_front", scored)
        rewards, pool = rewards[scored], self._all_initial[scored]
        counts = count_beaten(rewards, pool[:, 1:])
        return {
            "weight": float(weight),
            **_numbers(
                np.ones_like(rewards),
                rewards,
                kls[scored],
                counts,
                pool.shape[1] - 1,
            ),
            "effective_samples": float(self._num_samples),
            "is_direct": True,
        }

    def _draw(self, weights, turn):
        """Another turn draws with other random numbers."""
        samples, rewards = self._trainer.draw_scored(
            self._prompts,
            self._num_samples,
            batch_size=self._batch_size,
            weights=weights,
            seed=(self._trainer.seed + turn) % 2**31,
        )
        return samples, np.asarray(rewards, "float64")

    def _log_probs_and_kls(self, weight):
        """Of the whole bank, at a weight: arrays `(prompts, 2 samples)`."""
        if weight not in self._read:
            self._trainer.interpolate(weight)
            read = [
                self._trainer.log_probs_and_kls_of(
                    samples, batch_size=self._batch_size
                )
                for samples in self._samples
            ]
            self._read[weight] = [
                np.concatenate(
                    [x.reshape(-1, self._num_samples) for x in arrays], axis=1
                ).astype("float64")
                for arrays in zip(*read)
            ]
        return self._read[weight]


def _check_trainer(trainer):
    if not hasattr(trainer, "interpolate"):
        raise TypeError(
            "`trainer` must be a trainer such as `keras_bond.Bond`. Received: "
            f"trainer={trainer!r} of type {type(trainer).__name__}"
        )
    if "reference" not in trainer.weight_names():
        raise ValueError(
            "`weight_front` compares with the initial policy, which a trainer "
            "keeps with LoRA or when told: keras_bond.Bond(..., "
            "reference=True). Received: a model of type "
            f"{type(trainer).__name__} without a reference"
        )


def _effective_samples(ratios):
    """`(Σ w)² / Σ w²` of each prompt's importance weights, a mean."""
    total = ratios.sum(axis=1)
    return float((total**2 / (ratios**2).sum(axis=1)).mean())


def _numbers(ratios, rewards, kls, counts, k):
    """Means of weighted samples, with standard errors.

    Args:
        ratios: float array `(prompts, samples)`, importance weights.
        rewards, kls: float arrays of the same shape.
        counts: `(beaten, tied)`, int arrays of the same shape: how many of k
            samples of the initial policy each sample beats and ties with.
        k: int.

    Returns:
        dict of float.
    """
    beaten, tied = counts
    reward, win_rate, kl, quantile = (
        _mean(_weighted_means(ratios, values))
        for values in (
            rewards,
            (beaten + 0.5 * tied) / k,
            kls,
            harmonic(beaten, tied, k),
        )
    )
    mean, error = quantile
    low, high = (n_from_harmonic(mean + sign * error, k) for sign in (-1, 1))
    # By the delta method.
    n = n_from_harmonic(mean, k), (high - low) / 2
    found = dict(zip(NUMBERS, (reward, win_rate, kl, n)))
    return {
        key: value
        for name, (mean, error) in found.items()
        for key, value in ((name, mean), (f"{name}_error", error))
    }


def _weighted_means(ratios, values):
    """Self-normalized mean of each prompt, without the bias of the ratio.

    The jackknife removes the part of the bias that falls as `1 / samples`
    (Quenouille, 1956).

    Args:
        ratios, values: float arrays `(prompts, samples)`.

    Returns:
        float array `(prompts,)`.
    """
    totals = ratios.sum(axis=1, keepdims=True)
    products = ratios * values
    sums = products.sum(axis=1, keepdims=True)
    means = sums / totals
    left = totals - ratios
    # Where one sample has all the weight, nothing is left without it.
    is_rest = left > 1e-9 * totals
    without = np.where(
        is_rest, (sums - products) / np.where(is_rest, left, 1.0), means
    )
    n = ratios.shape[1]
    return n * means[:, 0] - (n - 1) * without.mean(axis=1)


def _mean(per_prompt):
    """Mean over prompts and its standard error."""
    error = per_prompt.std(ddof=1) / math.sqrt(len(per_prompt))
    return float(per_prompt.mean()), float(error)
