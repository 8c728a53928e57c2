"""A step whose loss or gradient is not finite changes nothing but clocks."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_bond
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

BAD = 1


class Spoilt(keras_bond.JBond):
    """Spoils its loss, or the gradient alone, in some of its steps."""

    spoils, bad_batches = "loss", [BAD]

    def loss_terms(self, batch, outputs):
        terms = super().loss_terms(batch, outputs)
        name, (weight, losses) = next(iter(terms.items()))
        batches = ops.convert_to_tensor(self.prompts_seen) // 2
        is_bad = ops.any(ops.equal(batches, ops.array(self.bad_batches)))
        nan = ops.where(is_bad, float("nan"), 0.0)
        if self.spoils == "loss":
            losses = losses + nan
        else:
            # The root of 0 is 0, and its slope is infinite.
            zeros = 0.0 * ops.sum(outputs["log_probs"], axis=1)
            losses = losses + ops.sqrt(zeros + ops.where(is_bad, 0.0, 1.0))
        return {**terms, name: (weight, losses)}


class Trace(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.states, self.logs = [], []

    def on_train_batch_end(self, batch, logs=None):
        if keras.config.backend() == "jax":
            self.model.jax_state_sync()
        bond = self.model
        kept = [*bond.trainable_variables, *bond.optimizer.variables]
        self.states.append(values_of([*kept, *bond.anchor.weights]))
        self.logs.append(dict(logs))


def fit(spoils="loss", bad_batches=(BAD,), epochs=1, **compile_arguments):
    bond = Spoilt(
        make_policy(num_layers=1),
        length_reward,
        max_prompt_length=12,
        max_completion_length=3,
        seed=1,
    )
    bond.spoils, bond.bad_batches = spoils, list(bad_batches)
    bond.compile(
        keras.optimizers.Adam(1e-5), **COMPILED_QUICKLY, **compile_arguments
    )
    trace = Trace()
    rule = keras_bond.callbacks.AnchorEMA(0.1)
    arguments = dict(batch_size=2, epochs=epochs, verbose=0)
    try:
        bond.fit(PROMPTS, callbacks=[rule, trace], **arguments)
    except FloatingPointError as error:
        return bond, trace, error
    return bond, trace, None


def assert_same(one, other):
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("spoils", ["loss", "gradient"])
def test_a_bad_step_is_left_out(spoils):
    bond, trace, _ = fit(spoils)
    assert_same(trace.states[BAD - 1], trace.states[BAD])
    assert all(np.isfinite(value).all() for value in trace.states[-1])
    assert any(
        (a != b).any() for a, b in zip(trace.states[BAD], trace.states[BAD + 1])
    )
    assert [int(x["train/skipped_steps"]) for x in trace.logs] == [0, 1, 1, 1]
    for logs in trace.logs:
        assert all(np.isfinite(float(value)) for value in logs.values())
    assert int(bond.prompts_seen) == len(PROMPTS)
    assert int(bond.optimizer.iterations) == len(trace.states) - 1


def test_many_bad_steps_in_a_row_end_the_training():
    bond, trace, error = fit(bad_batches=range(2, 99), max_skipped_steps=2)
    assert error is None
    bond, trace, error = fit(
        bad_batches=range(2, 99), max_skipped_steps=2, epochs=2
    )
    assert "Loss and gradients must be finite" in str(error)
    assert "Received: 2 skipped steps in a row" in str(error)
    assert len(trace.states) == 4
    kept = [*bond.trainable_variables, *bond.optimizer.variables]
    assert_same(trace.states[1], values_of([*kept, *bond.anchor.weights]))


def test_bad_steps_that_are_not_in_a_row_end_nothing():
    """Pins: a limit to all bad steps, not to those in a row."""
    bond, trace, error = fit(bad_batches=[0, 2], max_skipped_steps=2, epochs=2)
    assert error is None
    assert [int(x["train/skipped_steps"]) for x in trace.logs] == [
        *(1, 1, 2, 2),
        *(0, 0, 0, 0),
    ]
    assert int(bond.optimizer.iterations) == len(trace.states) - 2


def test_the_number_of_skipped_steps_is_checked():
    with pytest.raises(ValueError, match="`max_skipped_steps` must be"):
        fit(max_skipped_steps=0)


def test_a_loss_scale_falls_until_gradients_fit():
    """Keras's own protection of float16 acts, in the loop and in its state."""
    bond = keras_bond.JBond(
        make_policy(num_layers=1, dtype="mixed_float16"),
        length_reward,
        max_prompt_length=12,
        max_completion_length=3,
        seed=1,
    )
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(1e-2), initial_scale=2.0**20
    )
    bond.compile(optimizer, **COMPILED_QUICKLY)
    trace = Trace()
    rule = keras_bond.callbacks.AnchorEMA(0.1)
    logs = bond.fit(
        PROMPTS * 3, batch_size=2, verbose=0, callbacks=[rule, trace]
    ).history
    skipped = int(logs["train/skipped_steps"][0])
    assert 0 < skipped < 10
    assert float(optimizer.dynamic_scale) == 2.0 ** (20 - skipped)
    assert bond.num_updates() == 12 - skipped
    weights = [state[: len(bond.trainable_variables)] for state in trace.states]
    totals = [int(logs["train/skipped_steps"]) for logs in trace.logs]
    for step in range(1, 12):
        moved = any(
            map(np.any, map(np.subtract, *weights[step - 1 : step + 1]))
        )
        assert moved == (totals[step] == totals[step - 1])
