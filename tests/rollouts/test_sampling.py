"""One uniform number picks one token: `inverse_cdf_sample`."""

import numpy as np
import pytest
from keras import ops

from keras_bond.rollouts import uniform
from keras_bond.rollouts.decoder import inverse_cdf_sample
from tests.numeric import chi_square_p_value

LAST = 1 - 2.0**-24


def sample(probabilities, uniforms):
    """One token for each of `uniforms`, all from one distribution."""
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.asarray(probabilities, "float64"))
    rows = np.tile(log_probs.astype("float32"), (len(uniforms), 1))
    uniforms = np.asarray(uniforms, "float32")
    tokens, _ = inverse_cdf_sample(
        ops.convert_to_tensor(rows), ops.convert_to_tensor(uniforms)
    )
    return ops.convert_to_numpy(tokens)


def random_probs(size, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(size))


@pytest.mark.parametrize("size", [2, 7, 60])
def test_evenly_spaced_numbers_give_every_token_its_share(size):
    """Pins: a cumulative sum that is off by one token, or not normalized."""
    probs, count = random_probs(size), 10_000
    tokens = sample(probs, (np.arange(count) + 0.5) / count)
    counts = np.bincount(tokens, minlength=size)
    assert np.abs(counts - probs * count).max() < 1.5
    assert (np.diff(tokens) >= 0).all()


def test_random_numbers_give_the_distribution():
    """Pins: numbers used for several rows, or in another order.

    False alarm: 1 in 10,000 over the choice of seed.
    """
    probs = random_probs(30, seed=1)
    uniforms = uniform(0, "generate", ops.arange(50, dtype="int32"), 400, 1)
    tokens = sample(probs, ops.convert_to_numpy(uniforms).ravel())
    counts = np.bincount(tokens, minlength=30)
    assert chi_square_p_value(counts, probs) > 1e-4


@pytest.mark.parametrize("edge", [0.0, 2.0**-24, 0.5, LAST])
@pytest.mark.parametrize(
    "probs",
    [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0], [0, 0, 1, 0, 0]],
    ids=str,
)
def test_a_token_of_probability_zero_is_never_picked(probs, edge):
    """Pins: `>=` for `>`, at the edges of the unit interval above all."""
    assert probs[sample(probs, [edge])[0]] > 0


def test_the_edges_pick_the_first_and_the_last_token():
    """Pins: no token reached for the largest number, hence token 0."""
    probs = random_probs(60)
    assert sample(probs, [0.0, LAST]).tolist() == [0, 59]


def test_rounding_of_long_sums_never_reaches_a_forbidden_token():
    """Pins: a sum over the vocabulary that rounding leaves short of 1.

    Most tokens have probability 0, the last and the first one among them.
    """
    generator = np.random.default_rng(0)
    for trial in range(20):
        probs = random_probs(20_000, seed=trial)
        probs[generator.random(probs.size) < 0.9] = 0
        probs[:50] = probs[-50:] = 0
        tokens = sample(probs / probs.sum(), [0.0, 2.0**-24, LAST, LAST])
        assert (probs[tokens] > 0).all()
        assert tokens[0] == np.flatnonzero(probs)[0]


def test_rows_follow_their_own_distributions():
    """Pins: the cumulative sum taken over rows instead of tokens."""
    log_probs = np.log([[0.9, 0.1], [0.1, 0.9]]).astype("float32")
    half = np.array([0.5, 0.5], "float32")
    tokens, _ = inverse_cdf_sample(
        ops.convert_to_tensor(log_probs), ops.convert_to_tensor(half)
    )
    assert ops.convert_to_numpy(tokens).tolist() == [0, 1]
