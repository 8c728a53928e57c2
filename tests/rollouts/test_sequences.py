"""Prompt and completion in one row."""

import numpy as np
from keras import ops

from keras_bond.rollouts import sequences

PROMPTS = np.array([[2, 5, 6, 0], [2, 0, 0, 0], [2, 7, 8, 9]], "int32")
LENGTHS = np.array([3, 1, 4], "int32")
COMPLETIONS = np.array([[11, 12, 1], [13, 1, 0], [14, 15, 16]], "int32")


def test_completions_follow_their_prompts_at_once():
    """A completion behind the padding would be read as another text."""
    joined = sequences.join(
        *map(ops.convert_to_tensor, (PROMPTS, LENGTHS, COMPLETIONS))
    )
    expected = np.zeros((3, 7), int)
    for row in range(3):
        tokens = [*PROMPTS[row, : LENGTHS[row]], *COMPLETIONS[row]]
        expected[row, : len(tokens)] = tokens
    np.testing.assert_array_equal(ops.convert_to_numpy(joined), expected)


def test_the_window_finds_them_again():
    """With shift -1 it finds what predicts each token, one place earlier."""
    joined = sequences.join(
        *map(ops.convert_to_tensor, (PROMPTS, LENGTHS, COMPLETIONS))
    )
    lengths = ops.convert_to_tensor(LENGTHS)
    window = sequences.completion_window(joined, lengths, 3)
    np.testing.assert_array_equal(ops.convert_to_numpy(window), COMPLETIONS)
    before = ops.convert_to_numpy(
        sequences.completion_window(joined[:, :, None], lengths, 3, shift=-1)
    )
    np.testing.assert_array_equal(before[:, 0, 0], [6, 2, 9])
    np.testing.assert_array_equal(before[:, 1:, 0], COMPLETIONS[:, :-1])


def test_lay_out_masks_prompt_and_completion_up_to_the_end_token():
    laid = sequences.lay_out(
        ops.convert_to_tensor(PROMPTS),
        ops.convert_to_tensor(LENGTHS),
        ops.convert_to_tensor(COMPLETIONS[:, None]),
        stop_token_ids=(1,),
    )
    laid = {k: ops.convert_to_numpy(v)[:, 0] for k, v in laid.items()}
    np.testing.assert_array_equal(laid["mask"].sum(1), [3, 2, 3])
    np.testing.assert_array_equal(laid["padding_mask"].sum(1), [6, 3, 7])
    np.testing.assert_array_equal(laid["terminated"], [True, True, False])
