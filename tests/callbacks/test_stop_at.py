"""Training ends where a logged number has reached what was asked for."""

import math

import pytest

import keras_bond
from keras_bond import callbacks
from tests import tiny

pytestmark = pytest.mark.one_backend


class Model:
    stop_training = False


def stops(monitor, value, numbers, **options):
    """After how many epochs training ends, or None."""
    callback = callbacks.StopAt(monitor, value, **options)
    callback.set_model(Model())
    for epoch, number in enumerate(numbers):
        callback.on_epoch_end(epoch, {monitor: number})
        if callback.model.stop_training:
            return epoch + 1
    return None


@pytest.mark.parametrize(
    ("mode", "numbers", "expected"),
    [
        ("max", (0.2, 0.5, 0.6, 0.7), 3),
        ("max", (0.2, math.nan, 0.59), None),
        ("max", (0.2, math.inf), 2),
        ("min", (0.9, 0.7, 0.6), 3),
        ("min", (0.9, 0.61, math.nan), None),
    ],
)
def test_reached(mode, numbers, expected, capsys):
    assert stops("kl_ref", 0.6, numbers, mode=mode) == expected
    assert ("kl_ref is" in capsys.readouterr().out) == (expected is not None)


def test_in_fit():
    bond = keras_bond.JBond(
        tiny.make_policy(num_layers=1),
        tiny.length_reward,
        max_prompt_length=8,
        max_completion_length=4,
        reference=True,
    )
    bond.compile("adam", **tiny.COMPILED_QUICKLY)
    stop = callbacks.StopAt("kl_ref", -1e9, verbose=0)
    history = bond.fit(tiny.PROMPTS, batch_size=4, epochs=3, callbacks=stop)
    assert len(history.history["kl_ref"]) == 1


def test_number_that_is_not_logged():
    with pytest.raises(ValueError, match="logged are"):
        callbacks.StopAt("kl_ref", 1).on_epoch_end(0, {"reward": 1.0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.6, "kl_ref"), "`monitor`"),
        (("kl_ref", "0.6"), "`value`"),
        (("kl_ref", math.nan), "`value`"),
        (("kl_ref", 0.6, "auto"), "`mode`"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        callbacks.StopAt(*arguments)
