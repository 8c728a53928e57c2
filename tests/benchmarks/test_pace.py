"""The study of pace: its numbers, its table and its estimator."""

import pathlib
import sys

import numpy as np
import pytest

sys.path.append(
    str(pathlib.Path(__file__).parents[2] / "integration" / "benchmarks")
)

import pace
import several_updates

from keras_bond.training import estimators


def test_table_has_means_over_seeds_and_their_spread(tmp_path):
    numbers = dict.fromkeys(pace.FIELDS, 1.0)
    for seed, kl in enumerate((0.2, 0.3, 0.4)):
        row = {"task": "facts", "setting": "copy 32", "seed": seed, "kl": kl}
        pace.add_row(tmp_path / "results.csv", {**numbers, **row})
    row = {"task": "facts", "setting": "ema 0.1", "seed": 0, "kl": 0.5}
    pace.add_row(tmp_path / "results.csv", {**numbers, **row})
    *_, copies, ema = pace.report(tmp_path / "results.csv").splitlines()
    # 0.1 / √3.
    assert "| copy 32 | 3 |" in copies and "| 0.300 ± 0.058 |" in copies
    assert "| ema 0.1 | 1 |" in ema and "| 0.500 |" in ema


def test_error_is_that_of_the_draws():
    """Prompts of different means have no part in it."""
    rng = np.random.default_rng(0)
    means = 100.0 * np.arange(50)[:, None]
    values = means + rng.normal(size=(50, 400))
    # 20,000 draws of variance 1; 4 % is four standard errors of it.
    assert pace.error(values) == pytest.approx(20_000**-0.5, rel=0.04)


@pytest.mark.parametrize("settings", [pace.SETTINGS, pace.REAL_SETTINGS])
def test_stages_hold_whole_prompts(settings):
    for name, stages in settings.items():
        for stage in stages:
            whole = stage.sequences * stage.steps == stage.total
            assert whole and stage.batch_size > 1, name


def test_the_first_update_is_that_of_the_pooled_estimator():
    rng = np.random.default_rng(0)
    log_ratios = rng.normal(size=(3, 6)).astype("float32")
    batch = {
        "ranks": rng.integers(0, 4, size=(3, 6)).astype("float32"),
        "valid": np.array([True, True, False]),
        "anchor_log_probs": np.zeros((3, 6), "float32"),
        "drawn_log_probs": log_ratios,
    }
    own = several_updates.PooledByDrawn(2, 3, 3)
    pooled = estimators.Pooled(2, 3, 3)
    for method in ("forward", "backward"):
        expected = getattr(pooled, method)(batch, {}, log_ratios)
        found = getattr(own, method)(batch, {}, log_ratios)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
