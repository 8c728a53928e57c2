"""Means over what could be scored, against loops."""

import numpy as np
import pytest
from keras import ops

from keras_bond import formulas
from keras_bond.formulas import averages

VALUES = np.random.default_rng(0).normal(size=8).astype("float32")
MASKS = [
    [True] * 8,
    [True, False, True, True, False, True, False, False],
    [False] * 7 + [True],
    [False] * 8,
]


def mean_of(values):
    return sum(values) / len(values) if values else 0.0


@pytest.mark.parametrize("mask", MASKS)
def test_masked_mean_is_the_mean_of_what_is_kept(mask):
    """Pins: dividing by the batch size, or 0 / 0 where nothing is kept."""
    result = averages.masked_mean(VALUES, np.array(mask))
    kept = [float(v) for v, keep in zip(VALUES, mask) if keep]
    assert float(result) == pytest.approx(mean_of(kept), rel=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_leave_one_out_mean_is_the_mean_of_the_others(mask):
    """Pins: a value in its own baseline, or dropped prompts counted."""
    result = ops.convert_to_numpy(
        averages.leave_one_out_mean(VALUES, np.array(mask))
    )
    for i in np.flatnonzero(mask):
        others = [float(VALUES[j]) for j in np.flatnonzero(mask) if j != i]
        assert result[i] == pytest.approx(mean_of(others), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -1e30])
def test_junk_in_dropped_prompts_does_not_leak(junk):
    """Pins: masking by multiplication, which lets NaN and infinity pass."""
    mask = np.array(MASKS[1])
    dirty = np.where(mask, VALUES, junk).astype("float32")
    clean = np.where(mask, VALUES, 0.0).astype("float32")
    for function in (averages.masked_mean, averages.leave_one_out_mean):
        result = ops.convert_to_numpy(function(dirty, mask))
        expected = ops.convert_to_numpy(function(clean, mask))
        assert np.isfinite(result).all()
        np.testing.assert_allclose(result, expected)


def test_a_prompt_without_others_has_no_baseline():
    """Pins: a lonely prompt as its own baseline, which teaches nothing."""
    result = averages.leave_one_out_mean(
        np.array([3.0, 5.0], "float32"), np.array([True, False])
    )
    assert float(ops.convert_to_numpy(result)[0]) == 0.0


@pytest.mark.parametrize("kind", averages.BASELINES)
@pytest.mark.parametrize("num_samples", [1, 3])
def test_baselines_leave_the_sample_out(kind, num_samples):
    """Against loops; a dropped prompt is in no baseline but its own."""
    generator = np.random.default_rng(1)
    returns = generator.normal(size=(4, num_samples)).astype("float32")
    mask = np.array([True, True, False, True])
    if kind == "prompt" and num_samples == 1:
        kind = "batch"
    result = ops.convert_to_numpy(formulas.baseline(returns, mask, kind))
    for i in (0, 1, 3):
        others = returns[[j for j in (0, 1, 3) if j != i]].mean()
        for j in range(num_samples):
            own = np.delete(returns[i], j)
            within = own.mean() if num_samples > 1 else others
            expected = {
                "batch": others,
                "prompt": within,
                "mixed": (others + within) / 2,
            }
            assert result[i, j] == pytest.approx(expected[kind], rel=1e-4)


def test_a_single_prompt_has_the_baseline_of_its_own_samples():
    """Pins: half a baseline, of a batch that is not there."""
    returns = np.array([[1.0, 2.0, 6.0]], "float32")
    result = formulas.baseline(returns, np.array([True]), "mixed")
    np.testing.assert_allclose(
        ops.convert_to_numpy(result), [[4.0, 3.5, 1.5]], rtol=1e-6
    )
