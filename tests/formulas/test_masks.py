"""What counts as a token of the completion."""

import numpy as np
import pytest
from keras import ops

from keras_bond.formulas import masks

END, TURN = 1, 7


def mask_of(ids, stops=(END, TURN)):
    return ops.convert_to_numpy(masks.completion_mask(np.array(ids), stops))


def test_the_end_token_counts_and_what_follows_it_does_not():
    """Pins: the probability of stopping left out of `log π(y)`."""
    kept = mask_of([[5, 6, END, 5, 6]])
    assert kept.tolist() == [[True, True, True, False, False]]


def test_a_second_end_token_is_junk():
    """Pins: keeping every end token, or cutting at the last one."""
    kept = mask_of([[5, END, 5, END, 5], [END, END, END, END, END]])
    assert kept.tolist() == [[True, True] + [False] * 3, [True] + [False] * 4]


def test_no_end_is_invented_for_a_completion_cut_at_the_limit():
    """Pins: dropping the last token of a completion without an end."""
    assert mask_of([[5, 6, 5, 6]]).all()


def test_padding_is_no_end_unless_asked_for():
    """Pins: token 0 taken for an end token."""
    assert mask_of([[5, 0, 5, 0]]).all()
    kept = mask_of([[5, 0, 5, 0]], stops=(0,))
    assert kept.tolist() == [[True, True, False, False]]


def test_any_of_several_stop_tokens_ends_a_completion():
    """Pins: only the first, or only the last, of the stop ids is looked for."""
    kept = mask_of([[5, TURN, 5, END], [5, 5, END, TURN]])
    assert kept.tolist() == [[True, True, False, False], [True] * 3 + [False]]


def test_without_stop_tokens_everything_counts():
    """Pins: an empty tuple of stop ids treated as "auto"."""
    assert mask_of([[0, 1, 7, 5]], stops=()).all()


def test_mask_agrees_with_a_loop_on_random_completions():
    """Pins: rows mixed up with one another, off-by-one at either edge."""
    ids = np.random.default_rng(0).integers(0, 9, (200, 6))
    for row, kept in zip(ids, mask_of(ids)):
        ended = False
        for token, keep in zip(row, kept):
            assert keep == (not ended)
            ended = ended or token in (END, TURN)


@pytest.mark.parametrize(
    "row, ended",
    [([5, 6, 5], False), ([5, 5, END], True), ([TURN, 5, 5], True)],
)
def test_is_terminated_tells_ended_from_cut(row, ended):
    """Pins: a completion that ends with its very last token counted as cut."""
    result = masks.is_terminated(np.array([row]), (END, TURN))
    assert ops.convert_to_numpy(result).tolist() == [ended]
