"""Prompts that are read once give what whole rows give, with gradients."""

import numpy as np
import pytest
from keras import ops

from keras_bond.backend import layer_calls
from keras_bond.rollouts import network
from keras_bond.rollouts import reader
from tests.numeric import variable_gradients
from tests.rollouts.completions import make_batch
from tests.rollouts.completions import make_bond
from tests.tiny import make_policy

PROMPTS, SAMPLES, LENGTH = 4, 3, 6
LENGTHS = np.array([4, 1, 5, 2], "int32")


@pytest.fixture
def shares_always(monkeypatch):
    monkeypatch.setattr(reader, "MIN_TOKENS_SAVED", 1)


def batch_of(ends):
    mask = np.arange(LENGTH) < np.reshape(ends, (PROMPTS, SAMPLES, 1))
    return make_batch(LENGTHS, 5, mask)


def bond_of(policy):
    return make_bond(policy, 5, LENGTH)


@pytest.mark.parametrize("lora, parts", [(False, None), (True, 1), (False, 4)])
def test_values_and_gradients_are_those_of_whole_rows(
    shares_always, monkeypatch, lora, parts
):
    """Of blocks that are recomputed, and of rows in groups and in parts.

    Pins: attention to padding, a mask that is gone when a block is recomputed,
    and samples whose share of the prompt's gradient is lost.
    """
    policy = make_policy(num_layers=1, scale=3.0)
    if lora:
        policy.backbone.enable_lora(2)
        for variable in policy.trainable_variables:
            values = np.random.default_rng(2).normal(size=variable.shape)
            variable.assign(0.3 * values)
    bond = bond_of(policy)
    batch = batch_of([6, 1, 3, 5, 2, 2, 1, 1, 3, 6, 2, 1])
    weights = np.random.default_rng(1).normal(size=(PROMPTS, SAMPLES))
    weights = ops.convert_to_tensor(weights.astype("float32"))
    filled = []
    read_hidden = network.read_hidden

    def watched(policy, inputs, cache, index=0):
        filled.append(tuple(inputs["token_ids"].shape))
        return read_hidden(policy, inputs, cache, index)

    def loss():
        return ops.sum(bond.reader.read(batch, True, parts or 1) * weights)

    variables = policy.trainable_variables
    with monkeypatch.context() as patch:
        patch.setattr(bond.reader, "shares_prompts", lambda *sizes: False)
        plain = variable_gradients(loss, variables)
    monkeypatch.setattr(network, "read_hidden", watched)
    if parts:
        groups = ((4, LENGTH), (8, 3))
        with bond.reader._using_groups(groups):
            shared = variable_gradients(loss, variables)
    else:
        shared = variable_gradients(loss, variables)
    assert filled[0] == (PROMPTS, 4)
    assert filled[1] == {None: (12, 6), 1: (4, 6), 4: (2, 6)}[parts]
    assert shared[0] == pytest.approx(plain[0], rel=1e-5)
    assert len(plain[1]) == len(variables)
    for a, b in zip(plain[1], shared[1]):
        np.testing.assert_allclose(b, a, atol=1e-5 * max(1.0, np.abs(a).max()))


def test_padding_of_prompts_is_not_seen(shares_always):
    """The token ids of the padding change no bit; of NumPy arrays, too."""
    policy = make_policy(scale=3.0)
    bond, batch = bond_of(policy), batch_of([LENGTH] * 12)
    arrays = {k: ops.convert_to_numpy(v) for k, v in batch.items()}
    found = []
    for padding in (0, 7):
        ids = arrays["prompt_ids"].copy()
        ids[np.arange(5) >= LENGTHS[:, None]] = padding
        padded = {**arrays, "prompt_ids": ids}
        found.append(ops.convert_to_numpy(bond.reader.hidden(padded)))
    np.testing.assert_array_equal(*found)


def test_prompts_are_read_whole_where_sharing_saves_little(monkeypatch):
    """One sample for a prompt, few or short prompts, prompts with images."""
    monkeypatch.setattr(reader, "MIN_TOKENS_SAVED", 2 * 3 * 9)
    bond = bond_of(make_policy())
    assert bond.reader.shares_prompts(2, 4, 10)
    assert not bond.reader.shares_prompts(1, 4, 10)
    assert not bond.reader.shares_prompts(2, 3, 10)
    assert not bond.reader.shares_prompts(2, 4, 9)
    monkeypatch.setattr(reader, "MIN_TOKENS_SAVED", 1)
    assert not bond.reader.shares_prompts(9, 1, 99)
    assert not bond.reader.shares_prompts(9, 9, 2)
    batch = batch_of([LENGTH] * 12)
    assert "cache" in bond.reader._rows(batch, False)
    assert "cache" not in bond.reader._rows({**batch, "images": {}}, False)


def test_a_replaced_attribute_comes_back():
    """Blocks are replaced twice: masked, and recomputed."""
    policy = make_policy()
    block = network.blocks(policy.backbone)[0]
    block.size, before = 1, block.call
    with layer_calls.replaced({(block, "size"): 2, (block, "call"): print}):
        with layer_calls.replaced({(block, "size"): 3, (block, "call"): len}):
            assert (block.size, block.call) == (3, len)
        assert (block.size, block.call) == (2, print)
    assert (block.size, block.call) == (1, before)
    assert "call" not in vars(block)
