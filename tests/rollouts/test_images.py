"""Embeddings of images get to the places of their tokens."""

import numpy as np
import pytest
from keras import ops

from keras_bond.rollouts import images

IMAGES, TOKENS, LENGTH, WIDTH = 2, 4, 12, 3


# Pins: as many rows as indices, of which Keras takes one for the other on
# TensorFlow.
@pytest.mark.parametrize("rows", [1, 3, IMAGES * TOKENS])
@pytest.mark.parametrize("unused, has_one_axis", [(0, True), (1, False)])
def test_interleave_is_a_loop_over_tokens(rows, unused, has_one_axis):
    generator = np.random.default_rng(rows)
    text = generator.normal(size=(rows, LENGTH, WIDTH)).astype("float32")
    embedded = generator.normal(size=(rows, IMAGES, TOKENS + unused, WIDTH))
    embedded = embedded.astype("float32")
    indices = np.zeros((rows, IMAGES * TOKENS), "int32")
    expected = text.copy()
    for row in range(rows):
        for image in range(row % (IMAGES + 1)):
            start = 1 + row % 3 + 5 * image
            for token in range(TOKENS):
                indices[row, image * TOKENS + token] = start + token
                expected[row, start + token] = embedded[row, image, token]
    if has_one_axis:
        embedded = embedded.reshape(-1, TOKENS, WIDTH)
    arrays = map(ops.convert_to_tensor, (embedded, text, indices))
    found = images.interleave(*arrays)
    np.testing.assert_array_equal(ops.convert_to_numpy(found), expected)
