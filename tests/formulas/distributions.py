"""Small listed distributions, and expectations over all of their samples.

A policy of four completions is a softmax of logits: the ascent direction of
`Σ_i c_i log π(y_i)` is `Σ_i c_i (e_{y_i} - π)`, summed over all tuples of
samples with their probability. NumPy in float64 throughout.
"""

import itertools

import numpy as np

SIZE = 4
REWARDS = {
    "distinct": np.array([2.0, 3.0, 0.0, 1.0]),
    "tied": np.array([0.0, 1.0, 1.0, 2.0]),
    "binary": np.array([0.0, 0.0, 1.0, 0.0]),
    "constant": np.zeros(4),
}


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


ANCHOR = softmax(np.array([0.3, -0.6, 0.9, 0.1]))
POLICY = softmax(np.array([0.6, 0.2, -0.1, 0.4]))


def best_of_n_by_brute_force(rewards, n):
    """`π_BoN` of n draws of the anchor, ties broken uniformly."""
    probs = np.zeros(SIZE)
    for picks in itertools.product(range(SIZE), repeat=n):
        chance = ANCHOR[list(picks)].prod()
        highest = max(rewards[i] for i in picks)
        winners = [i for i in picks if rewards[i] == highest]
        for winner in winners:
            probs[winner] += chance / len(winners)
    return probs


def all_tuples(num_policy_samples, num_anchor_samples):
    """All tuples of samples, policy first, and their probabilities."""
    count = num_policy_samples + num_anchor_samples
    tuples = np.array(list(itertools.product(range(SIZE), repeat=count)))
    chances = POLICY[tuples[:, :num_policy_samples]].prod(axis=1)
    chances = chances * ANCHOR[tuples[:, num_policy_samples:]].prod(axis=1)
    return tuples, chances


def log_ratios(tuples):
    return np.log(POLICY / ANCHOR)[tuples].astype("float32")


def expected_ascent(coefficients, tuples, chances):
    """`E Σ_i c_i ∇ log π(y_i)` with respect to the policy's logits."""
    direction = np.zeros(SIZE)
    for row, chance, weights in zip(tuples, chances, coefficients):
        np.add.at(direction, row, chance * weights)
        direction -= chance * weights.sum() * POLICY
    return direction
