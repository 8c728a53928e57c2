"""What is shown while training goes on, and that showing changes nothing."""

import json

import keras
import numpy as np
import pytest

import keras_bond
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy


def make_bond():
    bond = keras_bond.JBond(
        make_policy(num_layers=1),
        length_reward,
        max_prompt_length=12,
        max_completion_length=5,
        seed=1,
    )
    bond.compile(keras.optimizers.SGD(1e-5), **COMPILED_QUICKLY)
    return bond


def fit(bond, *callbacks):
    rule = keras_bond.callbacks.AnchorEMA(0.02)
    bond.fit(
        PROMPTS,
        batch_size=4,
        epochs=2,
        verbose=0,
        callbacks=[rule, *callbacks],
    )


def test_tables_at_the_start_and_after_each_epoch(tmp_path, capsys):
    path = tmp_path / "new" / "completions.jsonl"
    bond = make_bond()
    fit(bond, keras_bond.callbacks.CompletionsLog(PROMPTS[:3], path=path))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["step"] for r in records] == [0] * 3 + [2] * 3 + [4] * 3
    assert [r["prompt"] for r in records[:3]] == PROMPTS[:3]
    for record in records:
        assert record["reward"] == len(record["policy"])
        assert record["its reward"] == len(record["anchor"])
        assert record["quantile"] * 8 == int(record["quantile"] * 8)
    shown = capsys.readouterr().out
    assert shown.count("quantile") == 3 and "Step 4" in shown


def test_the_last_table_is_what_the_model_answers_now(tmp_path):
    path = tmp_path / "completions.jsonl"
    bond = make_bond()
    fit(
        bond,
        keras_bond.callbacks.CompletionsLog(PROMPTS, path=path, verbose=0),
    )
    last = [json.loads(line) for line in path.read_text().splitlines()][-8:]
    assert [r["policy"] for r in last] == bond.generate(PROMPTS)


def test_every_so_many_steps(capsys):
    log = keras_bond.callbacks.CompletionsLog(PROMPTS[:1], every=1)
    fit(make_bond(), log)
    shown = capsys.readouterr().out
    assert [f"Step {i}\n" in shown for i in range(6)] == [True] * 5 + [False]


def test_looking_changes_nothing():
    """Draws of the log must not use up those of the training."""
    plain, logged = make_bond(), make_bond()
    fit(plain)
    log = keras_bond.callbacks.CompletionsLog(PROMPTS[:2], every=1, verbose=0)
    fit(logged, log)
    for a, b in zip(
        values_of(plain.policy.variables), values_of(logged.policy.variables)
    ):
        np.testing.assert_array_equal(a, b)


def test_rows_of_a_table_fit_the_terminal():
    record = dict(
        step=7,
        prompt="two\nlines " * 30,
        policy="long " * 50,
        reward=0.123456,
        anchor="short",
        quantile=1.0,
    )
    record["its reward"] = float("nan")
    lines = keras_bond.callbacks.completions_log.table([record], 80)
    title, *rows = lines.splitlines()
    assert title == "Step 7" and len(rows) == 2
    assert all(len(row) <= 80 for row in rows)
    assert "0.123" in rows[1] and "…" in rows[1] and "nan" in rows[1]


def test_what_is_refused():
    with pytest.raises(
        ValueError, match="`every` must be .* Received: every=0"
    ):
        keras_bond.callbacks.CompletionsLog(PROMPTS, every=0)
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    log = keras_bond.callbacks.CompletionsLog(PROMPTS)
    with pytest.raises(ValueError, match="a model of type Sequential"):
        model.fit(np.ones((2, 1)), np.ones((2, 1)), verbose=0, callbacks=[log])
