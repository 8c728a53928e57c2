"""Rows that have ended leave the batch, and come back where they were."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bond import backend
from keras_bond import rollouts
from tests.tiny import make_policy

LENGTH = 8
ON_XLA = keras.config.backend() != "torch"
LENGTHS = {
    "at once": [1] * 8,
    "never": [LENGTH + 1] * 8,
    "together": [5] * 8,
    "one straggler": [1, 2, 1, 2, 1, LENGTH + 1, 2, 1],
    "one by one": [8, 1, 7, 2, 6, 3, 5, 4],
    "an odd number": [4, 1, 8, 2, 9],
}


def shrink_early(monkeypatch):
    """Lets batches shrink to one row, as large ones do to eight."""
    if ON_XLA:
        from keras_bond.backend import xla

        monkeypatch.setattr(xla, "FEWEST_ROWS", 1)
    else:
        from keras_bond.backend import torch

        monkeypatch.setattr(torch, "CHECK_EVERY", 1)


def count(rows, lengths, sizes):
    """Adds up the number of each row, once for each of its tokens."""

    def body(index, state, cache):
        sizes.append(state["ended"].shape[0])
        left = ops.logical_not(state["ended"])
        return {
            **state,
            "ended": index + 1 >= state["lengths"],
            "sums": state["sums"] + ops.where(left, cache, 0),
        }, cache

    zeros = ops.zeros_like(rows)
    state = {"ended": zeros > 0, "sums": zeros, "lengths": lengths}
    start = ops.convert_to_tensor(0, "int32")
    return backend.decode_loop(body, start, LENGTH, state, rows)


@pytest.mark.parametrize("ends", LENGTHS)
def test_each_row_counts_its_own_tokens(monkeypatch, ends):
    """Pins: junk after the end, rows that swap places or caches."""
    shrink_early(monkeypatch)
    lengths, sizes = np.array(LENGTHS[ends], "int32"), []
    rows = np.arange(len(lengths), dtype="int32")
    tensors = [ops.convert_to_tensor(x) for x in (rows, lengths)]
    state = count(*tensors, sizes)
    expected = {
        "sums": rows * np.minimum(lengths, LENGTH),
        "lengths": lengths,
        "ended": lengths <= LENGTH,
    }
    for name, values in expected.items():
        actual = ops.convert_to_numpy(state[name])
        assert actual.tolist() == values.tolist()
    if keras.config.backend() == "jax":
        # The loop is traced for each size.
        half = -(-len(rows) // 2)
        assert len(set(sizes)) <= 4 and {len(rows), half, 1} <= set(sizes)


@pytest.mark.skipif(
    keras.config.backend() != "jax",
    reason="Keras distributes on the JAX backend only",
)
def test_no_row_moves_to_another_device(monkeypatch):
    """Devices share one number per token: how many rows are left."""
    import jax

    shrink_early(monkeypatch)
    rows = np.arange(4 * len(jax.devices()), dtype="int32")
    lengths = 1 + rows % LENGTH
    previous = keras.distribution.distribution()
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    try:
        placed = [backend.devices.to_device(x) for x in (rows, lengths)]
        stage = jax.jit(lambda *tensors: count(*tensors, [])["sums"])
        compiled = stage.lower(*placed).compile()
    finally:
        keras.distribution.set_distribution(previous)
    assert np.array_equal(compiled(*placed), rows * lengths)
    program = compiled.as_text()
    assert "s32[] all-reduce(" in program
    for moved in ("all-gather", "all-to-all", "collective-permute"):
        assert f" {moved}(" not in program


def test_a_shrinking_batch_draws_the_same_completions(monkeypatch):
    """Ragged prompts and lengths; each token is far from its neighbor's."""
    policy = make_policy(scale=3.0)
    decoder = rollouts.Decoder(policy, LENGTH, range(5, 20))
    generator = np.random.default_rng(0)
    lengths = np.array([3, 1, 5, 6], "int32")
    prompts = generator.integers(5, 40, (4, 6)).astype("int32")
    prompts[np.arange(6) >= lengths[:, None]] = 0
    uniforms = rollouts.uniform(0, "policy", ops.arange(4), 2, LENGTH)

    def draw():
        arguments = (ops.convert_to_tensor(x) for x in (prompts, lengths))
        return decoder(*arguments, uniforms)

    whole = draw()
    shrink_early(monkeypatch)
    shrinking = draw()
    drawn = (ops.convert_to_numpy(whole["completion_ids"]) != 0).sum(-1)
    assert 1 <= drawn.min() < drawn.max()
    for name, tensor in whole.items():
        np.testing.assert_allclose(
            ops.convert_to_numpy(shrinking[name]),
            ops.convert_to_numpy(tensor),
            rtol=1e-4,
            err_msg=name,
        )
