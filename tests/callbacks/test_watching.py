"""`BestOfNReport`, `RewardOveroptimisation` and the bar, in a real `fit`."""

import contextlib
import csv
import io
import types

import keras
import numpy as np
import pytest

import keras_bond
from keras_bond import reporting
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

HELD_OUT = PROMPTS[:4]


def letters_reward(prompts, completions):
    return [float(sum(map(str.isalpha, text))) for text in completions]


def fit(folder=None):
    """A training that is watched by everything, or, without folder, by none."""
    bond = keras_bond.JBond(
        make_policy(num_layers=1),
        length_reward,
        max_prompt_length=12,
        max_completion_length=5,
        reference=True,
        seed=1,
    )
    bond.compile(keras.optimizers.SGD(1e-4), **COMPILED_QUICKLY)
    callbacks = [keras_bond.callbacks.AnchorEMA(0.02)]
    report = None
    if folder is not None:
        report = keras_bond.callbacks.BestOfNReport(
            HELD_OUT,
            folder / "best_of_n.png",
            ns=(1, 2, 4),
            pool_size=8,
            num_samples=4,
        )
        callbacks += [
            report,
            keras_bond.callbacks.RewardOveroptimisation(
                HELD_OUT, letters_reward, num_samples=4
            ),
            keras.callbacks.CSVLogger(folder / "log.csv"),
            keras.callbacks.TensorBoard(folder / "tensorboard"),
        ]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        history = bond.fit(
            PROMPTS,
            batch_size=4,
            epochs=2,
            callbacks=callbacks,
            verbose=0 if folder is None else 1,
        ).history
    return types.SimpleNamespace(
        bond=bond,
        report=report,
        history=history,
        printed=printed.getvalue(),
        folder=folder,
    )


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("run"))


def test_watching_changes_nothing(watched):
    plain = fit()
    for a, b in zip(
        values_of(plain.bond.variables), values_of(watched.bond.variables)
    ):
        np.testing.assert_array_equal(a, b)
    for name, values in plain.history.items():
        np.testing.assert_array_equal(values, watched.history[name])


def test_numbers_are_those_of_the_evaluation(watched):
    bond, point = watched.bond, watched.report.points[-1]
    pool = np.concatenate(
        [
            bond.draw_scored(HELD_OUT, 4, weights="reference", seed=seed)[1]
            for seed in (2, 3)
        ],
        axis=1,
    )
    mine = bond.draw_scored(HELD_OUT, 4, seed=1)[1]
    frontier = keras_bond.evaluation.best_of_n_frontier(pool, (1, 2, 4))
    assert watched.report.frontier == frontier
    assert point["reward"] == mine.mean()
    assert point["win_rate"] == keras_bond.evaluation.win_rate(mine, pool)
    n = keras_bond.evaluation.effective_n(mine, pool)
    assert point["effective_n"] == n.value
    logs = bond.evaluate(HELD_OUT, return_dict=True, verbose=0)
    assert point["kl"] == pytest.approx(logs["kl_ref"], rel=1e-6)
    assert point["step"] == 4 and len(watched.report.points) == 2
    gold = letters_reward(HELD_OUT, sum(bond.generate(HELD_OUT, 4), []))
    assert watched.history["gold/reward"][-1] == pytest.approx(np.mean(gold))


def test_history_and_csv_hold_them(watched):
    with open(watched.folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("best_of_n/effective_n", "best_of_n/kl", "gold/agreement"):
        logged = [float(row[name]) for row in rows]
        np.testing.assert_allclose(logged, watched.history[name], rtol=1e-6)


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
    assert "best_of_n/effective_n: " in watched.printed
    for name in ("entropy", "forward_kl_loss", "frac_prompts_unscored"):
        assert name not in watched.printed
    assert watched.printed.count("One sample is worth the best of") == 2


def test_page_and_picture(watched):
    picture = (watched.folder / "best_of_n.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    page = reporting.write_report(watched.folder).read_text()
    assert "Against Best-of-N of the start" in page
    assert page.count("<svg") == 2
    assert not list(watched.folder.glob("*unfinished*"))


def test_bar_of_ones_own_and_that_of_keras(capsys):
    shown = []
    bar = keras_bond.callbacks.ProgressBar(["entropy"])
    for callbacks in (bar, [keras.callbacks.ProgbarLogger()], None):
        added = keras_bond.callbacks.progress_bar.with_progress_bar(
            callbacks, "auto"
        )
        bars = [
            callback
            for callback in added
            if isinstance(callback, keras.callbacks.ProgbarLogger)
        ]
        assert len(bars) == 1
        bars[0].set_params({"verbose": 1, "epochs": 1, "steps": 1})
        bars[0].on_epoch_begin(0)
        logs = {"reward": 1.0, "entropy": 2.0, "train/skipped_steps": 0}
        bars[0].on_train_batch_end(0, logs)
        bars[0].on_epoch_end(0, {**logs, "val_entropy": 3.0})
        shown.append(capsys.readouterr().out)
    own, stock, default = shown
    assert "entropy: 2" in own and "val_entropy: 3" in own
    assert "reward" not in own
    assert all(name in stock for name in logs)
    assert "reward: 1" in default and "entropy" not in default
    assert "skipped" not in default


def test_skipped_steps_are_shown_once_there_are_some(capsys):
    bar = keras_bond.callbacks.ProgressBar()
    bar.set_params({"verbose": 1, "epochs": 1, "steps": 1})
    bar.on_epoch_begin(0)
    bar.on_train_batch_end(0, {"reward": 1.0, "train/skipped_steps": 2})
    assert "train/skipped_steps: 2" in capsys.readouterr().out
