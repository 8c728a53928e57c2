"""Algorithm 2 against loops in NumPy, written from the paper and not the code.

The oracle knows rewards, masks and log-probabilities of whole sequences, and
returns the loss and its exact gradient with respect to the log-probabilities.
"""

import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_bond
from tests.numeric import gradient
from tests.numeric import tensors_of
from tests.numeric import values_of
from tests.tiny import length_reward
from tests.tiny import make_policy

BATCH = 12
LENGTH = 5


@pytest.fixture(scope="module")
def bonds():
    """One trainer for each setting, all around the same policy."""
    policy = make_policy(scale=3.0)
    return {
        (beta, gamma): keras_bond.JBond(
            policy,
            length_reward,
            max_prompt_length=6,
            max_completion_length=LENGTH,
            jeffreys_beta=beta,
            kl_weight=gamma,
            reference=False,
            seed=0,
        )
        for beta in (0.0, 0.5, 1.0)
        for gamma in (0.0, 0.7)
    }


def random_batch(seed):
    """A batch with many ties, two dropped prompts and ragged ends."""
    generator = np.random.default_rng(seed)
    ends = generator.integers(1, LENGTH + 1, (BATCH, 3, 1))
    lengths = generator.integers(1, 7, BATCH)
    valid = np.ones(BATCH, bool)
    valid[[2, 7]] = False
    return {
        "prompt_ids": generator.integers(5, 40, (BATCH, 6)).astype("int32"),
        "prompt_lengths": lengths.astype("int32"),
        "completion_ids": generator.integers(5, 40, (BATCH, 3, LENGTH)).astype(
            "int32"
        ),
        "mask": np.arange(LENGTH) < ends,
        "terminated": ends[:, :, 0] < LENGTH,
        "rewards": generator.integers(0, 3, (BATCH, 3)).astype("float64"),
        "tie_breakers": generator.random((BATCH, 3)).astype("float32"),
        "anchor_log_probs": generator.normal(-9, 2, (BATCH, 3)).astype(
            "float32"
        ),
        "entropies": np.ones((BATCH, 1), "float32"),
        "sampling_log_probs": np.ones((BATCH, 3), "float32"),
        "present": np.ones(BATCH, bool),
        "valid": valid,
    }


def picks(batch):
    """For each prompt: is y penalized, and which anchor sample is best?"""
    penalized, best = [], []
    for rewards, numbers in zip(batch["rewards"], batch["tie_breakers"]):
        keys = list(zip(rewards, numbers))
        penalized.append(keys[0] < min(keys[1], keys[2]))
        best.append(2 if keys[2] > keys[1] else 1)
    return penalized, best


def oracle(batch, log_probs, beta, gamma):
    """Loss of algorithm 2 and its gradient, minimizing sign of eq. 19."""
    penalized, _ = picks(batch)
    rows = [i for i in range(BATCH) if batch["valid"][i]]
    ratio = log_probs[:, 0] - batch["anchor_log_probs"][:, 0]
    returns = [-math.log(16) * penalized[i] - ratio[i] for i in range(BATCH)]
    loss, slope = 0.0, np.zeros_like(log_probs)
    for i in rows:
        others = [returns[j] for j in rows if j != i]
        advantage = returns[i] - sum(others) / len(others)
        forward = -log_probs[i, 1]
        backward = -log_probs[i, 0] * advantage
        regularizer = log_probs[i, 0] * ratio[i]
        loss += (1 - beta) * forward + beta * backward + gamma * regularizer
        slope[i, 0] = -beta * advantage + gamma * ratio[i]
        slope[i, 1] = -(1 - beta)
    return loss / len(rows), slope / len(rows)


def loss_of(bond, targets, y_pred):
    """The loss, with what it logs thrown away."""
    mapping = [(v, v.value) for v in bond.metrics_variables]
    with keras.StatelessScope(state_mapping=mapping):
        return bond.compute_loss(x=targets, y_pred={"log_probs": y_pred})


@pytest.mark.parametrize("gamma", [0.0, 0.7])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_loss_and_gradient_are_those_of_algorithm_2(bonds, beta, gamma):
    """Signs, baseline, denominators and stopped gradients, to 1e-5.

    The value of the surrogate is a small difference of terms of about 20, so
    it is compared to 1e-5 of 1.
    """
    bond = bonds[beta, gamma]
    for seed in range(3):
        batch = random_batch(seed)
        log_probs = np.random.default_rng(seed).normal(-9, 2, (BATCH, 2))
        tensors = tensors_of(batch)
        targets = bond.targets(tensors)

        def loss(y_pred, targets=targets):
            return loss_of(bond, targets, y_pred)

        expected, slope = oracle(batch, log_probs, beta, gamma)
        value = loss(ops.convert_to_tensor(log_probs, "float32"))
        np.testing.assert_allclose(float(value), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            gradient(loss, log_probs), slope, rtol=1e-5, atol=1e-6
        )


def test_targets_pick_the_better_anchor_sample(bonds):
    """The policy's own sample must never be the one that is imitated."""
    batch = random_batch(5)
    tensors = tensors_of(batch)
    targets = bonds[0.5, 0.0].targets(tensors)
    penalized, best = picks(batch)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(targets["penalized"])[:, 0], penalized
    )
    for name in ("completion_ids", "mask"):
        chosen = ops.convert_to_numpy(targets[name])
        for i in range(BATCH):
            np.testing.assert_array_equal(chosen[i, 0], batch[name][i, 0])
            np.testing.assert_array_equal(chosen[i, 1], batch[name][i, best[i]])


def test_call_is_the_sum_of_log_softmax_over_the_completion(bonds):
    """Against the plain model's full logits, one unpadded row at a time."""
    bond = bonds[0.5, 0.0]
    batch = random_batch(1)
    log_probs = ops.convert_to_numpy(bond.call(batch)["log_probs"])
    # A few, for JAX compiles each operation anew for each length.
    for i, j in ((0, 0), (1, 2), (2, 1), (3, 0)):
        expected = plain_log_prob(bond.policy, batch, i, j)
        np.testing.assert_allclose(log_probs[i, j], expected, 1e-4)


def plain_log_prob(policy, batch, i, j):
    prompt = batch["prompt_ids"][i, : batch["prompt_lengths"][i]]
    completion = batch["completion_ids"][i, j][batch["mask"][i, j]]
    ids = np.concatenate([prompt, completion])[None]
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids, bool)}
    logits = ops.convert_to_numpy(policy(inputs))[0].astype("float64")
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    before = range(len(prompt) - 1, ids.shape[1] - 1)
    return sum(logits[t, ids[0, t + 1]] for t in before)


def test_the_gradient_reaches_the_weights(bonds):
    """A step of plain SGD lowers the surrogate as much as its slope says.

    The optimizer's own step is compared with a finite difference, so a
    stopped gradient in the log-probabilities would show.
    """
    bond = bonds[0.5, 0.7]
    tensors = tensors_of(random_batch(2))
    targets = bond.targets(tensors)
    log_probs = bond.call(targets)["log_probs"]

    def loss(y_pred):
        return loss_of(bond, targets, y_pred)

    slope = gradient(loss, ops.convert_to_numpy(log_probs))
    variable = bond.policy.backbone.transformer_layers[1].ffw_linear.kernel
    start = values_of([variable])[0]
    direction = np.random.default_rng(0).normal(size=start.shape)
    ends = []
    for step in (1e-2, -1e-2):
        variable.assign((start + step * direction).astype("float32"))
        ends.append(ops.convert_to_numpy(bond.call(targets)["log_probs"]))
    variable.assign(start)
    expected = float((slope * (ends[0] - ends[1])).sum() / 2e-2)
    assert abs(expected) > 1e-3
    moved = weight_slope(bond, targets, slope, variable, direction)
    np.testing.assert_allclose(moved, expected, rtol=2e-2)


def weight_slope(bond, targets, slope, variable, direction):
    """Directional derivative of `Σ slope · log π` by autodiff."""
    start = ops.convert_to_tensor(values_of([variable])[0])

    def surrogate(distance):
        value = start + ops.cast(distance, "float32") * ops.cast(
            ops.convert_to_tensor(direction), "float32"
        )
        mapping = [(variable, value)]
        mapping += [(v, v.value) for v in bond.variables if v is not variable]
        with keras.StatelessScope(state_mapping=mapping):
            log_probs = bond.call(targets)["log_probs"]
            return ops.sum(ops.convert_to_tensor(slope) * log_probs)

    return float(gradient(surrogate, np.float32(0.0)))
