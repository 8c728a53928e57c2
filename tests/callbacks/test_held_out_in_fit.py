"""`HeldOut` and the progress bar in a real `fit`."""

import contextlib
import csv
import io
import json
import types

import keras
import numpy as np
import pytest

import keras_bond
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy
from tests.training.given import WALL_TIMES

HELD_OUT = PROMPTS[:4]


def letters_reward(prompts, completions):
    return [float(sum(map(str.isalpha, text))) for text in completions]


def make_bond(reference):
    bond = keras_bond.JBond(
        make_policy(num_layers=1),
        length_reward,
        max_prompt_length=12,
        max_completion_length=5,
        reference=reference,
        seed=1,
    )
    bond.compile(keras.optimizers.SGD(1e-4), **COMPILED_QUICKLY)
    return bond


def fit(bond, *callbacks, **arguments):
    """Two epochs of two steps; the logged numbers and what was printed."""
    rule = keras_bond.callbacks.AnchorEMA(0.02)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        history = bond.fit(
            PROMPTS,
            batch_size=4,
            callbacks=[rule, *callbacks],
            **{"epochs": 2, "verbose": 0, **arguments},
        )
    return history.history, printed.getvalue()


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A training that is watched by everything at every step."""
    folder = tmp_path_factory.mktemp("run")
    bond = make_bond(reference=True)
    held_out = keras_bond.callbacks.HeldOut(
        HELD_OUT,
        folder / "new",
        gold_reward=letters_reward,
        every=1,
        ns=(1, 2, 4),
        pool_size=8,
        num_samples=4,
        num_shown=2,
    )
    history, printed = fit(
        bond,
        held_out,
        keras.callbacks.CSVLogger(folder / "log.csv"),
        keras.callbacks.TensorBoard(folder / "tensorboard"),
        verbose=1,
    )
    return types.SimpleNamespace(
        bond=bond,
        held_out=held_out,
        history=history,
        printed=printed,
        folder=folder,
        records=read_records(folder / "new"),
    )


def read_records(folder):
    lines = (folder / "completions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_watching_changes_nothing(watched):
    """Pins: draws that use up those of the training, or reset its metrics."""
    bond = make_bond(reference=True)
    history, _ = fit(bond)
    for a, b in zip(
        values_of(bond.variables), values_of(watched.bond.variables)
    ):
        np.testing.assert_array_equal(a, b)
    for name in history.keys() - WALL_TIMES:
        np.testing.assert_array_equal(history[name], watched.history[name])


def test_numbers_are_those_of_the_evaluation(watched):
    bond, point = watched.bond, watched.held_out.points[-1]
    pool = np.concatenate(
        [
            bond.draw_scored(HELD_OUT, 4, weights="reference", seed=seed)[1]
            for seed in (2, 3)
        ],
        axis=1,
    )
    samples, rewards = bond.draw_scored(HELD_OUT, 4, seed=1)
    frontier = keras_bond.evaluation.best_of_n_frontier(pool, (1, 2, 4))
    assert watched.held_out.frontier == frontier
    assert point["reward"] == rewards.mean()
    assert point["win_rate"] == keras_bond.evaluation.win_rate(rewards, pool)
    n = keras_bond.evaluation.effective_n(rewards, pool)
    assert point["effective_n"] == n.value
    kls = bond.kls_of(samples)
    assert point["kl"] == pytest.approx(kls.mean(), rel=1e-6)
    gold = letters_reward(HELD_OUT, sum(bond.generate(HELD_OUT, 4), []))
    logged = watched.history["held_out/gold_reward"][-1]
    assert logged == pytest.approx(np.mean(gold))


def test_there_is_a_point_for_each_step(watched):
    points = watched.held_out.points
    assert [point["step"] for point in points] == [0, 1, 2, 3, 4]
    assert points[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert all(np.isfinite(point["kl"]) for point in points)
    for name in ("reward", "win_rate", "kl", "effective_n", "agreement"):
        logged = watched.history[f"held_out/{name}"]
        assert logged == [points[2][name], points[4][name]]


def test_completions_are_those_of_policy_and_initial_policy(watched):
    bond, records = watched.bond, watched.records
    assert [r["step"] for r in records] == sum(([i] * 4 for i in range(5)), [])
    for record in records:
        assert record["reward"] == len(record["completion"])
        length = len(record["reference_completion"])
        assert record["reference_reward"] == length
        assert record["quantile"] * 16 == int(record["quantile"] * 16)
    assert [r["prompt"] for r in records[:4]] == HELD_OUT
    for first in records[:4]:
        assert first["completion"] == first["reference_completion"]
    assert [r["completion"] for r in records[-4:]] == bond.generate(HELD_OUT)
    initial = bond.generate(HELD_OUT, weights="reference")
    assert [r["reference_completion"] for r in records[-4:]] == initial


def test_history_and_csv_hold_them(watched):
    with open(watched.folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("effective_n", "kl", "agreement"):
        logged = [float(row[f"held_out/{name}"]) for row in rows]
        expected = watched.history[f"held_out/{name}"]
        np.testing.assert_allclose(logged, expected, rtol=1e-6)


def test_tensorboard_shows_all_that_is_logged(watched):
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(
        str(watched.folder / "tensorboard" / "train"),
        size_guidance={event_accumulator.TENSORS: 0},
    ).Reload()
    tags = events.Tags()["tensors"]
    assert {f"epoch_{name}" for name in watched.history} <= set(tags)
    last = events.Tensors("epoch_reward")[-1]
    value = np.frombuffer(last.tensor_proto.tensor_content, "float32")
    if not value.size:
        value = np.array(last.tensor_proto.float_val)
    np.testing.assert_allclose(value, watched.history["reward"][-1], rtol=1e-6)


def test_bar_shows_reward_kl_and_win_rate_only(watched):
    lines = watched.printed.splitlines()
    bars = [line for line in lines if "2/2" in line and "step" in line]
    for name in ("reward: ", "kl: ", "kl_ref: ", "bond/win_rate: "):
        assert all(name in bar for bar in bars) and bars
    assert "held_out/effective_n: " in watched.printed
    for name in ("entropy", "forward_kl_loss", "frac_prompts_unscored"):
        assert name not in watched.printed


def test_blocks_and_lines_are_printed(watched):
    """Two prompts for each draw, and a line for each epoch."""
    printed = watched.printed
    assert printed.count("One sample is worth the best of") == 2
    shown = [f"prompts at step {i}\n" in printed for i in range(6)]
    assert shown == [True] * 5 + [False]
    assert printed.count("Held-out prompts at step") == 5
    assert printed.count("quantile") == 2 * 5


def test_files_are_whole(watched):
    folder = watched.folder / "new"
    names = {"best_of_n.png", "completions.jsonl", "held_out.json"}
    assert {path.name for path in folder.iterdir()} == names
    picture = (folder / "best_of_n.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    numbers = json.loads((folder / "held_out.json").read_text())
    assert numbers["frontier"] == watched.held_out.frontier
    points = watched.held_out.points
    assert [p["step"] for p in numbers["points"]] == [0, 1, 2, 3, 4]
    assert numbers["points"][-1] == points[-1]


def test_figure_of_the_run(watched):
    figure = keras_bond.evaluation.plot_run(watched.folder / "log.csv")
    titles = {axes.get_title() for axes in figure.axes}
    assert {"Reward", "KL", "Win rate", "Effective N", "Losses"} <= titles


def test_without_a_reference_the_anchor_is_shown_and_a_run_continues(tmp_path):
    """Pins: lines that a resumed run writes twice."""
    bond = make_bond(reference=False)

    def held_out():
        return keras_bond.callbacks.HeldOut(
            HELD_OUT, tmp_path, num_samples=5, pool_size=10
        )

    history, printed = fit(bond, held_out(), epochs=1)
    assert "anchor" in printed and "worth the best" not in printed
    assert "held_out/reward" in history and "held_out/kl" not in history
    fit(bond, held_out(), initial_epoch=1)
    records = read_records(tmp_path)
    assert [r["step"] for r in records] == [0] * 4 + [2] * 4 + [4] * 4
    for record in records:
        assert record["anchor_reward"] == len(record["anchor_completion"])
        assert record["quantile"] * 8 == int(record["quantile"] * 8)
    answers = bond.generate(HELD_OUT, weights="anchor")
    assert [r["anchor_completion"] for r in records[-4:]] == answers
    assert not (tmp_path / "best_of_n.png").exists()
