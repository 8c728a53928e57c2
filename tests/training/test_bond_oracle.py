"""`Bond`'s loss against loops in NumPy, for every estimator.

The oracle returns the exact gradient with respect to the log-probabilities.
"""

import dataclasses
import itertools
import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_bond
from keras_bond.formulas import pooled
from tests.numeric import gradient
from tests.numeric import tensors_of
from tests.tiny import length_reward
from tests.tiny import make_policy

BATCH, P, K = 6, 2, 4
GAMMA = 0.4


@pytest.fixture(scope="module")
def policy():
    return make_policy()


def make_bond(policy, **choices):
    return keras_bond.Bond(
        policy,
        length_reward,
        max_prompt_length=6,
        max_completion_length=5,
        **{
            "num_policy_samples": P,
            "num_anchor_samples": K,
            "reference": False,
            "seed": 0,
            **choices,
        },
    )


def random_batch(seed, levels=3):
    """Few reward levels make ties; one prompt is masked out."""
    generator = np.random.default_rng(seed)
    shape = (BATCH, P + K)
    return {
        "mask": np.ones((*shape, 5), bool),
        "completion_ids": np.ones((*shape, 5), "int32"),
        "terminated": np.ones(shape, bool),
        "rewards": generator.integers(0, levels, shape).astype("float64"),
        "tie_breakers": generator.random(shape).astype("float32"),
        "anchor_log_probs": generator.normal(-5, 0.5, shape).astype("float32"),
        "entropies": np.ones((BATCH, P), "float32"),
        "sampling_log_probs": np.ones(shape, "float32"),
        "present": np.ones(BATCH, bool),
        "valid": np.arange(BATCH) != 2,
    }


def slope_of(bond, batch, log_probs, extra=None):
    """Gradient of the library's loss with respect to `log_probs`."""
    targets = bond.targets(tensors_of(batch))
    mapping = [(v, v.value) for v in bond.metrics_variables]

    def loss(values):
        outputs = {"log_probs": values, **(extra or {})}
        with keras.StatelessScope(state_mapping=mapping):
            return bond.compute_loss(x=targets, y_pred=outputs)

    return gradient(loss, log_probs)


@dataclasses.dataclass
class Recipe:
    """What an estimator is made of, said once more and independently."""

    quantiles: str
    ties: str
    baseline: str
    imitates_best: bool


RECIPES = {
    "control_variate": Recipe("harmonic", "midrank", "mixed", False),
    "paper": Recipe("harmonic", "random", "batch", True),
    "monte_carlo": Recipe("monte_carlo", "midrank", "batch", True),
    "jbond": Recipe("pairs", "random", "batch", True),
}


def log_quantile(kind, c, k):
    if kind == "harmonic":
        return -sum(1 / i for i in range(c + 1, k + 1))
    if kind == "pairs":
        return -math.log(16) * math.comb(k - c, 2) / math.comb(k, 2)
    return math.log(max(c, 0.5) / k)


def backward_reward(batch, b, i, kind, ties, n):
    """`(N-1) log p_le` of one policy sample, ties by one of two rules."""
    reward, number = batch["rewards"][b, i], batch["tie_breakers"][b, i]
    anchor = batch["rewards"][b, P:]
    numbers = batch["tie_breakers"][b, P:]
    below, tied = sum(anchor < reward), sum(anchor == reward)
    if ties == "random":
        lucky = sum((anchor == reward) & (numbers < number))
        return (n - 1) * log_quantile(kind, below + lucky, K)
    if n == 2:
        sides = itertools.product((0, 1), repeat=int(tied))
        return np.mean([log_quantile(kind, below + sum(s), K) for s in sides])
    ranks = range(below, below + tied + 1)
    powers = [math.exp((n - 1) * log_quantile(kind, c, K)) for c in ranks]
    return math.log(np.mean(powers))


def best_of_first(batch, b, n):
    """The best of the first n anchor samples, ties by the larger number."""
    keys = [
        (batch["rewards"][b, P + i], batch["tie_breakers"][b, P + i])
        for i in range(n)
    ]
    return P + max(range(n), key=lambda i: keys[i])


def best_of_n_weight(batch, b, i, n):
    """Share of the n-subsets of the anchor's samples that i is the best of."""
    rewards, weight, count = batch["rewards"][b, P:], 0.0, 0
    for subset in itertools.combinations(range(K), n):
        highest = max(rewards[list(subset)])
        winners = [j for j in subset if rewards[j] == highest]
        count += 1
        weight += (i in winners) / len(winners)
    return weight / count


def oracle(batch, log_probs, recipe, n, beta):
    """Slope of `(1-β) forward + β backward + γ KL`, mean over prompts."""
    rows = [b for b in range(BATCH) if batch["valid"][b]]
    ratio = log_probs - batch["anchor_log_probs"].astype("float64")
    rewards = [
        [
            backward_reward(batch, b, i, recipe.quantiles, recipe.ties, n)
            for i in range(P)
        ]
        for b in range(BATCH)
    ]
    returns = np.array(rewards) - ratio[:, :P]
    slope = np.zeros_like(log_probs)
    for b, i in itertools.product(rows, range(P)):
        kl = ratio[b, i]
        if not recipe.imitates_best:
            kl -= lone_mean(ratio[:, :P], rows, b, i, recipe.baseline)
        advantage = returns[b, i] - lone_mean(
            returns, rows, b, i, recipe.baseline
        )
        slope[b, i] = (-beta * advantage + GAMMA * kl) / P
    for b in rows:
        if recipe.imitates_best:
            slope[b, best_of_first(batch, b, n)] = -(1 - beta)
            continue
        for i in range(K):
            weight = best_of_n_weight(batch, b, i, n)
            weight -= (
                scale(batch, ratio, rows, b, n) * np.exp(ratio[b, P + i]) / K
            )
            slope[b, P + i] = -(1 - beta) * weight
    return slope / len(rows)


def lone_mean(values, rows, b, i, baseline):
    by_batch = np.mean([values[c] for c in rows if c != b])
    by_prompt = np.mean([values[b, j] for j in range(P) if j != i])
    return by_batch if baseline == "batch" else (by_batch + by_prompt) / 2


def scale(batch, ratio, rows, b, n):
    products = squares = 0.0
    for c, i in itertools.product(rows, range(K)):
        if c != b:
            rho = np.exp(ratio[c, P + i])
            products += best_of_n_weight(batch, c, i, n) * rho
            squares += rho**2
    return min(1.0, K * products / squares)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("estimator", RECIPES)
def test_gradients_are_those_of_loops(policy, estimator, n):
    """Signs, denominators, ties, baselines, leave-one-out scales."""
    if estimator == "jbond" and n > 2:
        return
    recipe = RECIPES[estimator]
    bond = make_bond(
        policy,
        best_of_n=n,
        estimator=estimator,
        jeffreys_beta=0.3,
        kl_weight=GAMMA,
    )
    batch = random_batch(n)
    log_probs = np.random.default_rng(7).normal(-5, 0.5, (BATCH, P + K))
    expected = oracle(batch, log_probs, recipe, n, beta=0.3)
    if recipe.imitates_best:
        best = [best_of_first(batch, b, n) for b in range(BATCH)]
        kept = np.array([[*range(P), i] for i in best])
        log_probs = np.take_along_axis(log_probs, kept, axis=1)
        expected = np.take_along_axis(expected, kept, axis=1)
    result = slope_of(bond, batch, log_probs)
    np.testing.assert_allclose(result, expected, rtol=2e-4, atol=2e-6)


def test_pooled_parts_are_weighed_by_beta_and_masked(policy):
    """Pins: β on the wrong part; masked-out prompts in a baseline."""
    batch = random_batch(3)
    log_probs = np.random.default_rng(8).normal(-5, 0.5, (BATCH, P + K))
    ratios = (log_probs - batch["anchor_log_probs"]).astype("float32")
    bond = make_bond(policy, estimator="pooled", jeffreys_beta=0.3)
    forward = pooled.pooled_forward_coefficients(batch["rewards"], ratios, P)
    backward = pooled.pooled_backward_coefficients(
        batch["rewards"], ratios, P, batch["valid"]
    )
    mixed = 0.7 * ops.convert_to_numpy(forward)
    mixed = mixed + 0.3 * ops.convert_to_numpy(backward)
    expected = -mixed * batch["valid"][:, None] / (BATCH - 1)
    result = slope_of(bond, batch, log_probs)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


def test_exact_quantiles_make_the_target_a_fixed_point(policy):
    """At `π = π_BoN` every backward coefficient vanishes: no noise is left.

    With the quantiles of a model, for both learned and fitted ones.
    """
    bond = make_bond(
        policy, best_of_n=4, estimator="learned", jeffreys_beta=1.0
    )
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(BATCH, P + K, 2)).astype("float32")
    p_le = 1 / (1 + np.exp(-logits.astype("float64").max(axis=-1)))
    p_lt = 1 / (1 + np.exp(-logits.astype("float64").min(axis=-1)))
    ratio = np.log((p_le**4 - p_lt**4) / (p_le - p_lt))
    batch = random_batch(0)
    log_probs = batch["anchor_log_probs"] + ratio
    quantile_logits = np.sort(logits, axis=-1)[:, :, ::-1].copy()
    extra = {"quantile_logits": ops.convert_to_tensor(quantile_logits)}
    result = slope_of(bond, batch, log_probs, extra)
    np.testing.assert_allclose(result, 0.0, atol=2e-5)
    away = log_probs + generator.normal(size=log_probs.shape)
    assert np.abs(slope_of(bond, batch, away, extra)).max() > 1e-2


TRANSFORMS = {
    "cubed": lambda r: r**3,
    "exponential": lambda r: np.exp(3 * r),
    "shifted": lambda r: 1000 * r - 7,
    "with an offset": lambda r: 1e6 + 1e-3 * r,
}


@pytest.mark.parametrize("estimator", ["pooled", "learned", *RECIPES])
def test_increasing_transforms_of_the_reward_change_no_bit(policy, estimator):
    """Only ranks may enter, for ten random batches with and without ties."""
    bond = make_bond(policy, estimator=estimator)
    for seed in range(10):
        batch = random_batch(seed, levels=3 if seed % 2 else 1000)
        batch["rewards"] = batch["rewards"] / 100
        shape = (BATCH, bond.targets(tensors_of(batch))["mask"].shape[1])
        log_probs = np.random.default_rng(seed).normal(-5, 0.5, shape)
        logits = np.random.default_rng(seed).normal(size=(*shape, 2))
        extra = {"quantile_logits": ops.array(logits.astype("float32"))}
        expected = slope_of(bond, batch, log_probs, extra)
        for name, transform in TRANSFORMS.items():
            other = {**batch, "rewards": transform(batch["rewards"])}
            slope = slope_of(bond, other, log_probs, extra)
            np.testing.assert_array_equal(slope, expected, name)


def test_the_baselines_differ_in_their_loss_only(policy):
    """REINFORCE and BoNBoN against loops; the samples are drawn alike.

    Rewards of 1e6 have no decimals in float32.
    """
    batch = random_batch(5, levels=1000)
    batch["rewards"] = 1e6 + batch["rewards"] / 100
    log_probs = np.random.default_rng(2).normal(-5, 0.5, (BATCH, P + K))
    ratio = log_probs - batch["anchor_log_probs"]
    lengths = {"max_prompt_length": 6, "max_completion_length": 5, "seed": 0}
    rows = [b for b in range(BATCH) if batch["valid"][b]]

    trainer = keras_bond.Reinforce(
        policy, length_reward, kl_weight=0.3, **lengths
    )
    policys = {
        k: v[:, :P] if v.ndim > 1 and k != "entropies" else v
        for k, v in batch.items()
    }
    returns = policys["rewards"] - 0.3 * ratio[:, :P]
    expected = np.zeros((BATCH, P))
    for b in rows:
        expected[b] = -(returns[b] - returns[b, ::-1]) / P / len(rows)
    result = slope_of(trainer, policys, log_probs[:, :P])
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)

    trainer = keras_bond.BoNBoN(
        policy, length_reward, best_of_n=K, sft_weight=0.2, **lengths
    )
    anchors = {
        k: v[:, 1:] if v.ndim > 1 and k != "entropies" else v
        for k, v in batch.items()
    }
    anchors["entropies"] = batch["entropies"][:, :1]
    expected = np.zeros((BATCH, 1 + K))
    margin = (K - 1) * sum(1 / i for i in range(1, K))
    for b in rows:
        rewards = anchors["rewards"][b, 1:]
        best, worst = 1 + rewards.argmax(), 1 + rewards.argmin()
        delta = ratio[b, 1 + best] - ratio[b, 1 + worst]
        expected[b, best] = -0.2 - 0.8 * 2 * (margin - delta)
        expected[b, worst] = 0.8 * 2 * (margin - delta)
    np.testing.assert_allclose(
        slope_of(trainer, anchors, log_probs[:, 1:]),
        expected / len(rows),
        rtol=1e-4,
        atol=1e-5,
    )
