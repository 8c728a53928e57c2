"""Rows sorted into truncated groups have the results of whole rows."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_bond
from keras_bond.backend import ragged
from tests.numeric import values_of
from tests.numeric import variable_gradients
from tests.rollouts.completions import make_batch
from tests.rollouts.completions import make_bond
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

ROWS, LENGTH = 8, 6


@pytest.fixture
def sorts_always(monkeypatch):
    monkeypatch.setattr(ragged, "MIN_ROWS", 1)
    monkeypatch.setattr(ragged, "MIN_LENGTH", 1)
    monkeypatch.setattr(ragged, "TOKENS_PER_GROUP", 12)


def mask_of(lengths):
    return np.arange(LENGTH) < np.reshape(lengths, (4, 2, 1))


def tensor_of(lengths):
    return ops.convert_to_tensor(mask_of(lengths))


@pytest.mark.parametrize(
    "lengths, parts",
    [
        ([1, 6, 1, 2, 3, 1, 5, 1], 2),
        pytest.param([1] * 8, 1, marks=pytest.mark.one_backend),
    ],
)
def test_groups_change_neither_values_nor_gradients(
    sorts_always, monkeypatch, lengths, parts
):
    """Also of lengths that do not fit into fixed groups; in parts of memory.

    Pins: rows that come back in another order, a token that is lost, and a
    gradient that a group loses.
    """
    policy = make_policy(scale=3.0)
    bond = make_bond(policy, 4, LENGTH)
    batch = make_batch([4, 1, 3, 2], 4, mask_of(lengths))
    weights = np.random.default_rng(1).normal(size=(4, 2)).astype("float32")
    seen = []

    def loss():
        log_probs = bond.reader.read(batch, num_parts=parts)
        seen.append(bond.reader.groups)
        return ops.sum(log_probs * ops.convert_to_tensor(weights))

    variables = policy.trainable_variables
    plain = variable_gradients(loss, variables)
    assert seen == [None] * len(seen)
    groups = ragged.groups_for(batch["mask"])[0]
    if not bool(ragged.groups_for(batch["mask"])[1]):
        groups = ((8, LENGTH),)
    with bond.reader._using_groups(groups):
        cut = variable_gradients(loss, variables)
    assert seen[-1] == groups
    assert cut[0] == pytest.approx(plain[0], rel=1e-5)
    for a, b in zip(plain[1], cut[1]):
        np.testing.assert_allclose(b, a, atol=1e-5 * max(1.0, np.abs(a).max()))


def test_groups_are_used_where_they_fit(sorts_always):
    """One long row is enough to need whole rows where shapes are fixed."""
    fits = ragged.groups_for(tensor_of([6, 5, 3, 3, 2, 2, 1, 1]))[1]
    assert bool(fits)
    groups, fits = ragged.groups_for(tensor_of([6, 6, 4, 3, 2, 2, 1, 1]))
    if keras.config.backend() == "torch":
        assert bool(fits)
        assert groups == ((2, 6), (2, 4), (2, 2), (2, 1))
    else:
        assert not bool(fits)
        assert groups == ((2, 6), (2, 3), (4, 2))


def test_training_on_groups_changes_no_weight(monkeypatch):
    """Whole steps, with gradients that stop at a conditional where one is."""
    weights, entered = [], []
    for least in (100, 1):
        monkeypatch.setattr(ragged, "MIN_ROWS", least)
        monkeypatch.setattr(ragged, "MIN_LENGTH", 1)
        policy = make_policy(num_layers=1, scale=2.0)
        bond = keras_bond.JBond(
            policy,
            length_reward,
            max_prompt_length=12,
            max_completion_length=LENGTH,
            seed=1,
        )
        bond.compile(keras.optimizers.SGD(1e-2), **COMPILED_QUICKLY)
        sort = ragged.sort

        def watched(rows, groups, sort=sort):
            entered.append(groups)
            return sort(rows, groups)

        monkeypatch.setattr(ragged, "sort", watched)
        bond.fit(PROMPTS[:4], batch_size=4, verbose=0)
        monkeypatch.setattr(ragged, "sort", sort)
        weights.append(values_of(policy.trainable_variables))
    assert entered
    for a, b in zip(*weights):
        np.testing.assert_allclose(b, a, atol=1e-5)


def test_small_batches_are_not_sorted():
    if keras.config.backend() != "torch":
        assert ragged.groups_for(tensor_of([1] * 8)) == (None, False)


def test_rows_on_several_devices_are_not_sorted(sorts_always, monkeypatch):
    """Sorting would send rows from one device to another."""
    monkeypatch.setattr(ragged.devices, "num_replicas", lambda: 2)
    assert ragged.groups_for(tensor_of([1] * 8)) == (None, False)


@pytest.mark.parametrize(
    "group, parts, expected",
    [((8, 10), 1, 1), ((4, 10), 2, 1), ((6, 10), 2, 2), ((5, 10), 4, 5)],
)
def test_parts_of_a_group_are_no_larger_than_parts_of_all(
    group, parts, expected
):
    assert ragged.num_parts(group, 8, 10, parts) == expected
