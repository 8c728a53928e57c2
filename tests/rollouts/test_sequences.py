"""Prompt and completion in one row, against loops."""

import numpy as np
import pytest
from keras import ops

from keras_bond.formulas import sequences

PROMPTS = np.array(
    [[11, 0, 0, 0], [21, 22, 23, 24], [31, 32, 0, 0]], dtype="int32"
)
LENGTHS = np.array([1, 4, 2], dtype="int32")
COMPLETIONS = np.array([[5, 6, 7], [8, 9, 1], [6, 1, 0]], dtype="int32")


def as_numpy(function, *arguments, **options):
    tensors = [
        ops.convert_to_tensor(a) if isinstance(a, np.ndarray) else a
        for a in arguments
    ]
    return ops.convert_to_numpy(function(*tensors, **options))


def joined_by_a_loop():
    rows = []
    for prompt, length, completion in zip(PROMPTS, LENGTHS, COMPLETIONS):
        row = [*prompt[:length], *completion]
        rows.append(row + [0] * (7 - len(row)))
    return np.array(rows)


def test_a_completion_stands_right_behind_its_prompt():
    """Pins: an off-by-one at the seam, padding between the two."""
    result = as_numpy(sequences.join, PROMPTS, LENGTHS, COMPLETIONS)
    np.testing.assert_array_equal(result, joined_by_a_loop())


@pytest.mark.parametrize("shift", [0, -1])
@pytest.mark.parametrize("extra_axes", [(), (5,), (2, 3)])
def test_window_cuts_out_each_completion(shift, extra_axes):
    """Pins: an off-by-one in the shift, or one row's offset for all rows."""
    values = np.random.default_rng(0).normal(size=(3, 7, *extra_axes))
    result = as_numpy(
        sequences.completion_window,
        values.astype("float32"),
        LENGTHS,
        3,
        shift=shift,
    )
    for row, length in enumerate(LENGTHS):
        start = length + shift
        expected = values[row, start : start + 3].astype("float32")
        np.testing.assert_array_equal(result[row], expected)


def test_window_undoes_join():
    """Pins: joining and cutting that disagree about the seam."""
    whole = as_numpy(sequences.join, PROMPTS, LENGTHS, COMPLETIONS)
    result = as_numpy(sequences.completion_window, whole, LENGTHS, 3)
    np.testing.assert_array_equal(result, COMPLETIONS)


def test_repeated_rows_stand_side_by_side():
    """Pins: tiling instead of repeating, which mixes prompts up."""
    result = as_numpy(sequences.repeat_rows, LENGTHS, 2)
    assert result.tolist() == [1, 1, 4, 4, 2, 2]


def test_layout_marks_the_tokens_up_to_the_end_and_no_further():
    """Pins: junk behind the end shown to the reward, prompts mixed up."""
    samples = np.stack([COMPLETIONS, COMPLETIONS[::-1]], axis=1)
    collated = sequences.collate(
        *[ops.convert_to_tensor(a) for a in (PROMPTS, LENGTHS, samples)],
        stop_token_ids=(1,),
    )
    collated = {k: ops.convert_to_numpy(v) for k, v in collated.items()}
    ended = [[False, True], [True, True], [True, False]]
    assert collated["terminated"].tolist() == ended
    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS)):
        for sample in range(2):
            ids = samples[row, sample].tolist()
            kept = ids[: ids.index(1) + 1] if 1 in ids else ids
            place = row, sample
            shown = collated["token_ids"][place][
                collated["padding_mask"][place]
            ]
            assert shown.tolist() == [*prompt[:length], *kept]
            assert collated["mask"][place].sum() == len(kept)
