"""The study of pace: its numbers, its table and its estimator."""

import gzip
import json
import pathlib
import re
import sys
import types

import numpy as np
import pytest

sys.path.append(
    str(pathlib.Path(__file__).parents[2] / "integration" / "benchmarks")
)

import pace
import pace_settings
import pace_tasks
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


@pytest.mark.parametrize("pool_size", (24, 400))
def test_best_of_2_itself_wastes_nothing(monkeypatch, pool_size):
    """With small pools too, as those of the real model."""
    rng = np.random.default_rng(0)
    best = rng.uniform(size=(200, 64, 2)).max(axis=-1)
    kls = np.full(best.shape, np.log(2.0) - 0.5)
    monkeypatch.setattr(pace, "draw", lambda *arguments, **options: (best, kls))
    pool = rng.uniform(size=(200, pool_size))
    numbers = pace.measure(None, None, pool)
    assert numbers["win_rate"] == pytest.approx(2 / 3, abs=0.02)
    assert numbers["waste"] == pytest.approx(1.0, abs=0.1)
    assert numbers["effective_n"] == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("task", pace_settings.BY_TASK)
def test_stages_hold_whole_prompts(task):
    for name, stages in pace_settings.BY_TASK[task].items():
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


def test_restaurants_are_taught_once_by_the_examples_own_code(
    tmp_path, monkeypatch
):
    """With lists of facts that stand for the human texts."""
    folder = tmp_path / "e2e"
    folder.mkdir()
    for part, foods in ("train", ("Thai", "Indian")), ("dev", range(64)):
        with gzip.open(folder / f"e2e_{part}.jsonl.gz", "wt") as file:
            for food in foods:
                facts = f"name[Cotto], eatType[pub], near[Place {food}]"
                row = {"prompt": facts, "references": ["Cotto is a pub."]}
                file.write(json.dumps(row) + "\n")
    monkeypatch.setattr(
        pace_tasks.restaurants, "teach", lambda world: tmp_path / "taught"
    )
    task = pace_tasks.load_task("restaurants", data=tmp_path)
    assert task.preset == tmp_path / "taught"
    assert len(set(task.held_out)) == 64
    assert len(task.prompts(5, seed=0)) == 5
    texts = ["Cotto is a pub near Place 7.", "Cotto is a coffee shop."]
    prompts = ["name[Cotto], eatType[pub], near[Place 7] =>"] * 2
    assert (
        task.reward(prompts, texts)[0] == 1.0 > task.reward(prompts, texts)[1]
    )
    # A policy of another size needs no teaching.
    task = pace_tasks.load_task("restaurants", "other", data=tmp_path)
    assert task.preset == "other"


def test_each_weight_has_a_row(monkeypatch, tmp_path):
    bond = types.SimpleNamespace()
    bond.interpolate = lambda weight: setattr(bond, "weight", weight)
    task = types.SimpleNamespace(load_policy=lambda seed: None)
    cost = {"sequences": 96, "cpu_seconds": 1.0}

    def measure(bond, task, pool):
        return {**dict.fromkeys(pace.FIELDS[5:], 1.0), "kl": bond.weight}

    monkeypatch.setattr(pace_tasks, "load_task", lambda *arguments: task)
    monkeypatch.setattr(pace, "train", lambda *arguments: (cost, bond))
    monkeypatch.setattr(pace, "load_pool", lambda *arguments: None)
    monkeypatch.setattr(pace, "measure", measure)
    words = ["--settings", "copy 32", "--weights", "1", "1.5"]
    path = tmp_path / "results.csv"
    pace.study(pace.parse_arguments(words), path)
    *_, trained, extrapolated = pace.report(path).splitlines()
    assert "| copy 32 | 1 |" in trained and "| 1.000 |" in trained
    assert "| copy 32, weights x 1.5 |" in extrapolated
    assert "| 1.500 |" in extrapolated


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--settings copy32", "`--settings` are .*; copy 32; .*: copy32"),
        ("--task real --preset folder", "`--preset` is for the other tasks"),
        ("--weights 1 5", "`--weights` are from 0 to 4. Received: 5"),
        ("--report --output no-runs", "Received: no file no-runs.results.csv"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_trained(
    arguments, message, capsys
):
    with pytest.raises(SystemExit):
        pace.parse_arguments(arguments.split())
    assert re.search(message, capsys.readouterr().err)


def test_missing_restaurants_say_what_to_set(tmp_path):
    with pytest.raises(SystemExit, match="set KERAS_BOND_DATA to a folder"):
        pace_tasks.load_task("restaurants", data=tmp_path)
