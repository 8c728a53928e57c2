"""The formula of activations against what the backends really keep."""

import keras
import pytest
from keras import ops

import keras_bond
from keras_bond import backend
from keras_bond.planning import activations
from keras_bond.planning import planner
from keras_bond.planning.entries import learning_batch
from tests.tiny import length_reward
from tests.tiny import make_policy

BATCH = 4
SHAPES = {
    "base": {},
    "deep": {"num_layers": 4},
    "wide": {"hidden_dim": 128, "intermediate_dim": 512},
    "many words": {"vocabulary_size": 8192},
}
LONG = {"max_prompt_length": 96, "max_completion_length": 32}
SHORT = {"max_prompt_length": 32, "max_completion_length": 32}


def make_bond(lengths=SHORT, lora=0, compiled=None, **backbone):
    shape = {"hidden_dim": 64, "intermediate_dim": 128, **backbone}
    policy = make_policy(**shape)
    if lora:
        policy.backbone.enable_lora(lora)
    bond = keras_bond.JBond(policy, length_reward, seed=0, **lengths)
    bond.compile(keras.optimizers.Adam(1e-5), **(compiled or {}))
    return bond


def drawn_batch(bond):
    """What the learning pass of a `JBond` gets, of any values."""
    return {
        name: ops.ones(tensor.shape, tensor.dtype)
        for name, tensor in learning_batch(bond, BATCH).items()
    }


def planned(bond, names):
    """Bytes of the entries of the learning pass whose names begin so."""
    plan = keras_bond.plan(bond, BATCH)
    return sum(
        e.bytes
        for e in plan.entries
        if e.name.startswith(names) and "learning" in e.passes
    )


def xla_bytes(bond):
    """Temporary bytes of the learning pass, as XLA compiles it."""
    import jax

    lists = (
        bond.trainable_variables,
        bond.non_trainable_variables,
        bond.optimizer.variables,
        bond.metrics_variables,
    )
    state = tuple([v.value for v in variables] for variables in lists)
    learn = jax.jit(bond._learn, donate_argnums=0)
    compiled = learn.lower(state, drawn_batch(bond)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def saved_bytes(bond):
    """Bytes that PyTorch's graph of the forward pass keeps."""
    import torch

    weights = {v.value.untyped_storage().data_ptr() for v in bond.variables}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # Holding the tensor keeps its address from being given again.
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    batch = {
        name: tensor[:, :2] if len(tensor.shape) == 3 else tensor
        for name, tensor in drawn_batch(bond).items()
    }
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        bond(batch)
    return sum(num_bytes for num_bytes, _ in kept.values())


if keras.config.backend() == "jax":
    CASES = [
        *SHAPES.values(),
        {"lengths": LONG},
        {"compiled": {"gradient_accumulation_steps": 4}},
    ]

    @pytest.mark.parametrize("case", CASES)
    def test_the_learning_pass_is_what_xla_says(case, monkeypatch):
        bond = make_bond(**case)
        names = ("gradients", "logits", "activations", "cast", "merged")
        needed = xla_bytes(bond)
        ratio = planned(bond, names) / needed
        assert 0.9 < ratio < 1.1, ratio
        monkeypatch.setattr(planner, "MOST_COMPILED_BLOCKS", 0)
        ratio = planned(bond, names) / needed
        assert 0.6 < ratio < 1.6, ratio


if keras.config.backend() == "torch":
    CASES = [
        {"num_layers": 2},
        {"num_layers": 2, "hidden_dim": 192},
        {"num_layers": 2, "intermediate_dim": 512},
        {"num_layers": 2, "num_query_heads": 8, "lengths": LONG},
        {"num_layers": 2, "lora": 4},
    ]

    @pytest.mark.parametrize("case", CASES)
    def test_the_graph_keeps_what_the_formula_says(case):
        """Of one block, which is the difference that two of them make."""
        bond, deeper = make_bond(**case), make_bond(**{**case, "num_layers": 4})
        measured = saved_bytes(deeper) - saved_bytes(bond)
        kept = ("activations", "merged")
        ratio = (planned(deeper, kept) - planned(bond, kept)) / measured
        assert 0.6 < ratio < 1.6, ratio

    def test_rematerialized_blocks_keep_their_inputs_alone():
        again = {"rematerialize": True}
        bond = make_bond(compiled=again)
        deeper = make_bond(compiled=again, num_layers=4)
        measured = saved_bytes(deeper) - saved_bytes(bond)
        kept = "activations"
        assert planned(deeper, kept) - planned(bond, kept) == measured


def test_rematerialization_and_parts_are_counted(monkeypatch):
    monkeypatch.setattr(backend, "name", "jax")

    def learning(**compiled):
        bond = make_bond(num_layers=8, compiled=compiled)
        return keras_bond.plan(bond, BATCH, 1e12).peaks["learning"]

    plain, again = learning(), learning(rematerialize=True)
    parts = learning(gradient_accumulation_steps=4)
    both = learning(gradient_accumulation_steps=4, rematerialize=True)
    assert both < again < plain
    assert both < parts < plain


def test_xla_on_a_cpu_undoes_rematerialization(monkeypatch):
    monkeypatch.setattr(backend, "name", "jax")
    for on_cpu in (True, False):
        compiler = activations.compiler_for(on_cpu)
        network = activations.Network.of(make_policy(), compiler)
        assert network.rematerializes is not on_cpu


def test_heads_that_a_backbone_does_not_tell_are_said():
    bond = make_bond()
    known = keras_bond.plan(bond, BATCH, 1e12)
    bond.policy.backbone.num_query_heads = None
    unknown = keras_bond.plan(bond, BATCH, 1e12)
    assert unknown.peaks["learning"] < known.peaks["learning"]
    word = "without attention scores: `policy.backbone` tells neither"
    assert word in str(unknown) and word not in str(known)
