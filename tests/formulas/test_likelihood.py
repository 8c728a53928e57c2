"""Log-probabilities and entropies against NumPy in float64."""

import numpy as np
import pytest
from keras import ops

from keras_bond import formulas
from keras_bond.formulas import likelihood
from tests.numeric import gradient

LOGITS = np.random.default_rng(0).normal(size=(3, 4, 50)) * 5
TOKENS = np.random.default_rng(1).integers(0, 50, (3, 4)).astype("int32")


def log_softmax(logits):
    logits = np.asarray(logits, "float64")
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_token_log_probs_are_those_of_the_tempered_softmax(temperature):
    """Pins: no normalization, temperature multiplied in or left out."""
    result = formulas.token_log_probs(
        LOGITS.astype("float32"), TOKENS, temperature
    )
    expected = log_softmax(LOGITS / temperature)
    expected = np.take_along_axis(expected, TOKENS[..., None], -1)[..., 0]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_token_log_probs_are_float32_even_for_bfloat16_logits():
    """Pins: normalizing in bfloat16, wrong in the third digit."""
    logits = ops.cast(LOGITS.astype("float32"), "bfloat16")
    result = formulas.token_log_probs(logits, TOKENS)
    exact = log_softmax(ops.convert_to_numpy(ops.cast(logits, "float32")))
    exact = np.take_along_axis(exact, TOKENS[..., None], -1)[..., 0]
    assert ops.dtype(result) == "float32"
    np.testing.assert_allclose(result, exact, rtol=1e-5, atol=1e-5)


def test_large_logits_do_not_overflow():
    """Pins: a log-softmax without its maximum taken out."""
    logits = np.array([[1000.0, 0.0, -1000.0]], "float32")
    result = formulas.token_log_probs(logits, np.array([1], "int32"))
    np.testing.assert_allclose(result, [-1000.0], rtol=1e-6)


def test_sequence_log_probs_sum_over_the_mask_only():
    """Pins: a mean instead of a sum, the mask inverted or forgotten."""
    values = np.array([[-1.0, -2.0, -4.0], [-8.0, -16.0, -32.0]], "float32")
    mask = np.array([[True, True, False], [True, False, False]])
    result = formulas.sequence_log_probs(values, mask)
    np.testing.assert_allclose(result, [-3.0, -8.0])


def test_junk_behind_the_end_does_not_leak_into_the_sum():
    """Pins: masking by multiplication, where 0 x -inf is NaN."""
    values = np.array([[-1.0, -np.inf, np.nan]], "float32")
    mask = np.array([[True, False, False]])
    result = formulas.sequence_log_probs(values, mask)
    np.testing.assert_allclose(result, [-1.0])


def test_junk_behind_the_end_has_no_gradient():
    """Pins: NaN in a masked token poisoning the gradient of the weights."""
    mask = np.array([[True, True, False, False]])

    def loss(values):
        return ops.sum(formulas.sequence_log_probs(values, mask))

    result = gradient(loss, np.array([[-1.0, -2.0, -np.inf, -1e30]]))
    np.testing.assert_array_equal(result, [[1.0, 1.0, 0.0, 0.0]])


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_entropies_are_those_of_the_tempered_softmax(temperature):
    """Pins: a dropped minus, or the entropy of another temperature."""
    result = likelihood.token_entropies(LOGITS.astype("float32"), temperature)
    log_probs = log_softmax(LOGITS / temperature)
    expected = -(np.exp(log_probs) * log_probs).sum(-1)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_entropy_of_a_uniform_and_of_a_certain_token():
    """Pins: bits instead of nats."""
    logits = np.array([[0.0] * 8, [100.0] + [0.0] * 7], "float32")
    result = likelihood.token_entropies(logits)
    np.testing.assert_allclose(result, [np.log(8), 0.0], atol=1e-5)
