"""Errors of the anchor rules, and the default rule."""

import keras
import pytest

from keras_bond import callbacks
from keras_bond.callbacks.anchor import with_anchor_rule
from keras_bond.training.weight_sets import Anchor


def test_a_momentum_is_recognised():
    with pytest.raises(ValueError, match="momentum.*update_rate=0.02"):
        callbacks.AnchorEMA(update_rate=0.98)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(ValueError, match="between 0 and 0.5"):
        callbacks.AnchorEMA(rate)


@pytest.mark.parametrize("every", [0, -1, 2.5, 2**31, 10**12])
def test_refresh_wants_a_positive_number(every):
    with pytest.raises(ValueError, match="`every` must be an integer"):
        callbacks.AnchorRefresh(every)
    with pytest.raises(ValueError, match="`every` must be"):
        Anchor([]).set_rule(1.0, every)


def test_a_rule_belongs_to_a_jbond():
    model = keras.Sequential([keras.layers.Dense(1)])
    rule = callbacks.AnchorEMA()
    rule.set_model(model)
    with pytest.raises(ValueError, match="keras_bond.JBond"):
        rule.on_train_begin()


def test_one_rule_is_enough():
    rules = [callbacks.AnchorEMA(), callbacks.AnchorRefresh(2)]
    with pytest.raises(ValueError, match="one anchor rule"):
        with_anchor_rule(rules, callbacks.AnchorFixed(), announce=True)


def test_a_default_that_moves_is_announced_when_asked(capsys):
    default = callbacks.AnchorEMA()
    assert with_anchor_rule(None, default, announce=True) == [default]
    assert "AnchorEMA(update_rate=0.02)" in capsys.readouterr().out
    with_anchor_rule(None, default, announce=False)
    with_anchor_rule(None, callbacks.AnchorFixed(), announce=True)
    assert capsys.readouterr().out == ""
    own = callbacks.AnchorRefresh(3)
    assert with_anchor_rule([own], default, announce=True) == [own]
