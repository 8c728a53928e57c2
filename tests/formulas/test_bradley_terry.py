"""The loss of preference pairs against plain NumPy."""

import numpy as np
from keras import ops

from keras_bond.formulas import bradley_terry


def test_the_loss_is_that_of_bradley_and_terry():
    """Pins: a margin of the wrong sign, a centering of the difference."""
    chosen = np.array([1.0, -0.5, 2.0])
    rejected = np.array([0.5, 0.5, -1.0])
    margins = np.array([0.0, 0.7, 2.0])
    likelihoods = 1 / (1 + np.exp(-(chosen - rejected - margins)))
    expected = -np.log(likelihoods) + 0.1 * (chosen + rejected) ** 2
    tensors = (ops.array(x.astype("float32")) for x in (chosen, rejected))
    losses = bradley_terry.preference_loss(
        *tensors, ops.array(margins.astype("float32")), 0.1
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(losses), expected, rtol=1e-5
    )


def test_a_margin_asks_for_more():
    """A pair that leads by less than its margin costs more than log 2."""
    chosen, rejected = ops.array([1.0]), ops.array([0.5])
    losses = [
        float(bradley_terry.preference_loss(chosen, rejected, margin)[0])
        for margin in (0.0, 0.5, 1.0)
    ]
    assert losses[0] < np.log(2) < losses[2]
    np.testing.assert_allclose(losses[1], np.log(2), rtol=1e-6)
