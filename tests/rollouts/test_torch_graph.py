"""Decoding on PyTorch with a recorded step."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bond import rollouts
from tests.networks import make_network

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="PyTorch only"
)


@pytest.fixture
def recorded(monkeypatch):
    """Records steps from 2 tokens on; a list of whether it was possible."""
    from keras_bond.backend import torch as torch_backend
    from keras_bond.backend import torch_graph

    record, possible = torch_graph.record, []

    def counted(body, *arguments):
        step = record(body, *arguments)
        possible.append(step is not body)
        return step

    monkeypatch.setattr(torch_graph, "record", counted)
    monkeypatch.setattr(torch_backend, "WORTH_RECORDING", 2)
    return possible


def draw(policy, stops=(1,)):
    """Completions of prompts that differ in length."""
    prompts = np.array([[5, 6, 7, 0, 0], [9, 8, 11, 12, 13]], "int32")
    lengths = ops.convert_to_tensor(np.array([3, 5], "int32"))
    uniforms = np.random.default_rng(0).random((2, 4, 12)).astype("float32")
    decoder = rollouts.Decoder(policy, 12, stops)
    drawn = decoder(
        ops.convert_to_tensor(prompts), lengths, ops.convert_to_tensor(uniforms)
    )
    return {name: ops.convert_to_numpy(x) for name, x in drawn.items()}


@pytest.mark.parametrize(
    ("family", "possible"),
    [("Gemma 3", True), ("Llama 3", True), ("Mixtral", False)],
)
def test_a_recorded_step_draws_the_same(
    recorded, monkeypatch, family, possible
):
    """Bit for bit, whether the layout of the cache is Gemma's or Llama's.

    A mixture of experts looks which experts have tokens: it is not recorded.
    """
    import torch

    from keras_bond.backend import torch as torch_backend

    policy = make_network(family)
    with torch.no_grad():
        found = draw(policy)
        assert recorded == [possible], "asked once"
        monkeypatch.setattr(torch_backend, "WORTH_RECORDING", 100)
        expected = draw(policy)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_step_is_recorded_again_when_rows_are_dropped(recorded, monkeypatch):
    import torch

    from keras_bond.backend import torch as torch_backend

    policy, stops = make_network("Gemma 3"), range(0, 64, 3)
    monkeypatch.setattr(torch_backend, "CHECK_EVERY", 1)
    with torch.no_grad():
        found = draw(policy, stops)
        assert len(recorded) > 1
        monkeypatch.setattr(torch_backend, "WORTH_DROPPING", 2.0)
        expected = draw(policy, stops)
    np.testing.assert_array_equal(
        found["completion_ids"], expected["completion_ids"]
    )


def test_what_no_input_changes_is_computed_once():
    """Pins: adapters that are added to their kernels for every token."""
    import torch

    from keras_bond.backend import torch_graph

    weight, calls = torch.ones(3, 3), []

    def body(index, state, cache):
        calls.append(index)
        kernel = weight @ weight
        return {"x": state["x"] @ kernel + index}, [cache[0].add_(index)]

    index = torch.tensor(1, dtype=torch.int32)
    state, cache = {"x": torch.ones(2, 3)}, [torch.zeros(2)]
    step = torch_graph.record(body, index, state, cache)
    weight.zero_()
    index += 1
    state, updated = step(index, state, cache)
    assert len(calls) == 1
    assert updated[0] is cache[0] and updated[0].tolist() == [3.0, 3.0]
    assert state["x"].tolist() == [[11.0] * 3] * 2


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: float(x.sum()) + x,
        lambda x: x[x > 0].sum() + x,
        lambda x: ops.zeros(2).copy_(x),
    ],
)
def test_a_step_that_depends_on_values_is_not_recorded(ask):
    import torch

    from keras_bond.backend import torch_graph

    def body(index, state, cache):
        return {"x": ask(state["x"])}, cache

    index, state = torch.tensor(1), {"x": torch.ones(2)}
    assert torch_graph.record(body, index, state, []) is body
