"""The numbers that a step logs of its update and of its pace."""

import time

import keras
import numpy as np
import pytest
from keras import ops

import keras_bond
from keras_bond import backend
from keras_bond.training import metrics
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import make_policy

SECONDS = 0.05


@pytest.mark.parametrize("scale", [0.0, 1e-25, 1.0, 1e25])
def test_the_norm_of_gradients_of_any_size(scale):
    generator = np.random.default_rng(0)
    arrays = [scale * generator.normal(size=size) for size in [(3, 2), (4,)]]
    tensors = [ops.convert_to_tensor(x.astype("float32")) for x in arrays]
    found = float(backend.global_norm([tensors[0], None, tensors[1]]))
    together = np.concatenate([x.ravel() for x in arrays])
    np.testing.assert_allclose(found, np.linalg.norm(together), rtol=1e-6)


def fit(optimizer, epochs=1):
    """Trains for steps of 3, 3 and 2 prompts; rewards take `SECONDS`.

    Returns the logs of each epoch, the distance that the weights have moved,
    and the tokens of each step, as the reward saw them.
    """
    tokens = []

    def reward(prompts, completions, completion_ids):
        time.sleep(SECONDS)
        tokens.append(sum(len(ids) for ids in completion_ids))
        return [float(len(ids) + ids[0] % 3) for ids in completion_ids]

    policy = make_policy(num_layers=1, scale=3.0)
    bond = keras_bond.JBond(
        policy,
        reward,
        max_prompt_length=8,
        max_completion_length=3,
        stop_token_ids=tuple(range(8, 24)),
        seed=3,
    )
    bond.compile(optimizer, **COMPILED_QUICKLY)
    before = policy.get_weights()
    started = time.perf_counter()
    logs = bond.fit(PROMPTS, batch_size=3, epochs=epochs, verbose=0).history
    elapsed = time.perf_counter() - started
    squares = [
        np.sum(np.square(new.astype("float64") - old))
        for new, old in zip(policy.get_weights(), before)
    ]
    assert 0 < sum(logs["step_time"]) < elapsed
    return logs, np.sqrt(sum(squares)), tokens


def test_the_norm_and_the_rate_are_those_of_the_update():
    """Of SGD, which moves by the rate times the gradient.

    The weights stay nearly where they are, so that the three gradients are
    those of the run with another optimizer.
    """
    rate = 1e-3
    logs, moved, tokens = fit(keras.optimizers.SGD(rate))
    assert logs["learning_rate"] == [pytest.approx(rate)]
    norm = logs["grad_norm"][0]
    # The triangle inequality; the gradients of batches of one task agree.
    assert rate * norm < moved <= 3 * rate * norm * (1 + 1e-3)
    # The first step compiles and is not counted.
    per_step = logs["tokens_per_second"][0] * logs["step_time"][0]
    assert per_step == pytest.approx(np.mean(tokens[1:]))
    assert logs["step_time"][0] > SECONDS
    # Clipped, scaled by a factor of the loss, and with a rate that decays.
    schedule = keras.optimizers.schedules.ExponentialDecay(rate, 1, 0.5)
    optimizer = keras.optimizers.SGD(schedule, global_clipnorm=0.01 * norm)
    scaled = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=256.0)
    logs, moved, _ = fit(scaled, epochs=2)
    assert logs["grad_norm"][0] == pytest.approx(norm, rel=0.05)
    assert moved <= 2 * rate * 0.01 * norm * 1.001
    expected = [rate * 0.5**2, rate * 0.5**5]
    np.testing.assert_allclose(logs["learning_rate"], expected, rtol=1e-5)


def test_what_is_not_an_update_does_not_count():
    trackers = metrics.make_trackers([], False, 1, 1)
    variable = keras.Variable(np.zeros((2, 2), "float32"))
    optimizer = keras.optimizers.SGD(0.1)
    for norm, is_good, updated in (
        (3.0, True, False),
        (np.inf, False, False),
        (5.0, True, True),
        (np.nan, False, False),
    ):
        before = metrics.watch_update([variable], optimizer)
        if updated:
            variable.assign(np.eye(2, dtype="float32"))
        norm = ops.convert_to_tensor(norm, "float32")
        flags = (ops.convert_to_tensor(x) for x in (is_good, updated))
        is_good, updated = flags
        metrics.log_update(trackers, before, norm, is_good, [variable], updated)
        optimizer.learning_rate = optimizer.learning_rate * 0.5
    logs = {k: float(trackers[k].result()) for k in metrics.UPDATE_NAMES}
    assert logs["grad_norm"] == 4.0
    # That of the third step.
    assert logs["learning_rate"] == pytest.approx(0.025)
    assert logs["train/updated_fraction"] == 0.5
    for metric in trackers.values():
        metric.reset_state()
    assert np.isnan(float(trackers["learning_rate"].result()))


def test_the_pace_of_an_epoch(monkeypatch):
    """The step that compiles counts only while there is no other."""
    clock = iter([0.0, 60.0, 100.0, 102.0, 200.0, 206.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    pace, found = backend.Pace(), []
    for compiles, tokens in ((True, 30), (False, 6), (False, 14)):
        pace.begin_step(compiles)
        pace.count(np.ones((tokens // 2, 2), bool))
        found.append(tuple(pace.end_step().values()))
    assert found == [(60.0, 0.5), (2.0, 3.0), (4.0, 2.5)]


def test_an_evaluation_has_no_update():
    bond = keras_bond.JBond(
        make_policy(num_layers=1),
        lambda prompts, completions: [1.0] * len(prompts),
        max_prompt_length=8,
        max_completion_length=2,
        seed=1,
    )
    bond.compile("sgd", **COMPILED_QUICKLY, run_eagerly=True)
    logs = bond.evaluate(PROMPTS[:2], verbose=0, return_dict=True)
    of_training = {*metrics.UPDATE_NAMES, "step_time", "tokens_per_second"}
    assert not of_training & set(logs)
