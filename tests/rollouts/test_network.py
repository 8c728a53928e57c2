"""The head in parts and rematerialized blocks have the plain gradient."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bond import backend
from keras_bond import formulas
from keras_bond import rollouts
from keras_bond.backend import layer_calls
from keras_bond.rollouts import network
from tests.numeric import variable_gradients
from tests.tiny import make_policy

ROWS, LENGTH = 3, 7
FAMILIES = [pytest.param("gemma", marks=pytest.mark.one_backend), "gemma3"]


def inputs():
    generator = np.random.default_rng(0)
    ids = generator.integers(5, 40, (ROWS, 4)).astype("int32")
    completions = generator.integers(5, 40, (ROWS, LENGTH)).astype("int32")
    lengths = np.array([4, 2, 3], "int32")
    mask = np.arange(LENGTH) < np.array([7, 5, 1])[:, None]
    arrays = (ids, lengths, completions, mask)
    return [ops.convert_to_tensor(array) for array in arrays]


def loss_of(policy, rematerialize=False, temperature=0.7):
    """A sum in which every token has a weight of its own."""
    arrays = inputs()
    weights = np.random.default_rng(1).normal(size=(ROWS, LENGTH))

    def loss():
        hidden = rollouts.completion_hidden(policy, *arrays, rematerialize)
        head = rollouts.Head(policy, temperature)
        log_probs = head.token_log_probs(hidden, arrays[2], arrays[3])
        return ops.sum(log_probs * ops.convert_to_tensor(weights, "float32"))

    return loss


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("most_logits", [1, 300, 700])
def test_parts_change_neither_values_nor_gradients(
    monkeypatch, family, most_logits
):
    """1e-5 of the plain ones; 21 tokens also in parts that do not divide them.

    Pins: a gradient that a part's variables lose on one of the backends, and
    padding tokens that count.
    """
    policy = make_policy(family, scale=3.0)
    variables = policy.trainable_variables
    plain = variable_gradients(loss_of(policy), variables)
    monkeypatch.setattr(network, "MOST_LOGITS", most_logits)
    monkeypatch.setattr(
        rollouts.Head, "tokens_at_once", lambda self: 1 + most_logits // 60
    )
    parted = variable_gradients(loss_of(policy), variables)
    assert parted[0] == pytest.approx(plain[0], rel=1e-5)
    for a, b in zip(plain[1], parted[1]):
        np.testing.assert_allclose(b, a, atol=1e-5 * max(1.0, np.abs(a).max()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True])
def test_rematerialized_blocks_change_no_gradient(family, lora):
    """Adapters and full weights alike, to 1e-5."""
    policy = make_policy(family, scale=3.0)
    if lora:
        keras.utils.set_random_seed(0)
        policy.backbone.enable_lora(2)
        for variable in policy.trainable_variables:
            variable.assign(variable + 0.1)
    variables = policy.trainable_variables
    plain = variable_gradients(loss_of(policy), variables)
    again = variable_gradients(loss_of(policy, rematerialize=True), variables)
    assert again[0] == pytest.approx(plain[0], rel=1e-5)
    for a, b in zip(plain[1], again[1]):
        np.testing.assert_allclose(b, a, atol=1e-5 * max(1.0, np.abs(a).max()))


def test_replaced_calls_come_back_after_an_error():
    policy = make_policy()
    blocks = policy.backbone.transformer_layers
    before = [block.call for block in blocks]
    with pytest.raises(KeyError), layer_calls.rematerialized(blocks):
        assert [block.call for block in blocks] != before
        raise KeyError
    assert [block.call for block in blocks] == before


def test_no_more_logits_than_allowed_are_held(monkeypatch):
    """Also: never less than one token, and `width` where it is trained."""
    policy = make_policy()
    head = rollouts.Head(policy)
    vocabulary = policy.backbone.vocabulary_size
    monkeypatch.setattr(network, "MOST_LOGITS", 100 * vocabulary)
    assert head.tokens_at_once() == 100
    monkeypatch.setattr(network, "MOST_LOGITS", 1)
    assert head.tokens_at_once() == policy.backbone.hidden_dim
    policy.backbone.trainable = False
    assert head.tokens_at_once() == 1


def test_a_part_sees_few_tokens(monkeypatch):
    """Pins: parts that are made but computed all at once."""
    policy = make_policy()
    head, seen = rollouts.Head(policy), []
    monkeypatch.setattr(rollouts.Head, "tokens_at_once", lambda self: 4)

    def function(part):
        seen.append(part["hidden"].shape[0])
        return formulas.token_log_probs(
            head.logits(part["hidden"]), part["ids"]
        )

    hidden = ops.ones((2, 5, policy.backbone.hidden_dim))
    ids = ops.ones((2, 5), "int32")
    assert head.map_tokens(function, {"hidden": hidden, "ids": ids}).shape == (
        2,
        5,
    )
    assert set(seen) == {4}


def test_nested_parts_have_the_plain_gradient():
    """Parts of a batch, with the head in parts within each."""
    layer = keras.layers.Dense(4, use_bias=True)
    layer.build((None, 3))
    x = np.random.default_rng(0).normal(size=(2, 2, 2, 3)).astype("float32")
    x = ops.convert_to_tensor(x)

    def plain():
        return ops.sum(ops.square(ops.tanh(layer(x))))

    def nested():
        def inner(part):
            return ops.sum(ops.square(ops.tanh(layer(part))), axis=-1)

        def outer(part):
            return backend.map_parts(inner, part, layer.variables)

        return ops.sum(backend.map_parts(outer, x, layer.variables))

    value, gradients = variable_gradients(plain, layer.trainable_variables)
    value_2, gradients_2 = variable_gradients(nested, layer.trainable_variables)
    assert value_2 == pytest.approx(value, rel=1e-5)
    for a, b in zip(gradients, gradients_2):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_flat_products_change_nothing(monkeypatch, family):
    """Every dense layer of a block takes part, and has its equation back."""
    policy = make_policy(family, scale=3.0)
    variables = policy.trainable_variables
    results, equations = [], set()
    for flat in (False, True):
        monkeypatch.setattr(backend, "prefers_flat_products", lambda f=flat: f)
        with layer_calls.flattened(policy.backbone):
            names = {
                layer.name
                for layer in policy.backbone._flatten_layers()
                if "call" in vars(layer)
            }
        results.append(variable_gradients(loss_of(policy), variables))
        equations.add(
            tuple(
                layer.equation
                for layer in policy.backbone._flatten_layers()
                if isinstance(layer, keras.layers.EinsumDense)
            )
        )
    assert {"query", "value", "ffw_gating", "ffw_linear"} <= names
    assert len(equations) == 1
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    for a, b in zip(results[0][1], results[1][1]):
        np.testing.assert_allclose(b, a, atol=1e-5 * max(1.0, np.abs(a).max()))


def test_frozen_products_stay_as_they_are(monkeypatch):
    """Flat ones would cost the forward pass 5 % and save nothing."""
    policy = make_policy("gemma3")
    policy.backbone.enable_lora(2)
    monkeypatch.setattr(backend, "prefers_flat_products", lambda: True)
    with layer_calls.flattened(policy.backbone):
        layers = policy.backbone._flatten_layers()
        assert not any("call" in vars(layer) for layer in layers)


@pytest.mark.skipif(
    keras.config.backend() != "jax", reason="reads a program of XLA"
)
def test_the_head_holds_no_copy_of_the_embedding(monkeypatch):
    """Pins: a transposed embedding that XLA computes once before the loop."""
    import jax

    policy = make_policy()
    width, vocabulary = 16, policy.backbone.vocabulary_size
    policy.backbone.trainable = False
    monkeypatch.setattr(rollouts.Head, "tokens_at_once", lambda self: 2)
    head, variables = rollouts.Head(policy), policy.variables

    def loss(hidden, values):
        mapping = list(zip(variables, values))
        with keras.StatelessScope(state_mapping=mapping):
            ids = ops.zeros(hidden.shape[:1], "int32")
            return ops.sum(head.token_log_probs(hidden, ids, ids == 0))

    program = jax.jit(jax.grad(loss)).lower(
        ops.ones((24, width)), [v.value for v in variables]
    )
    program = program.compile().as_text()
    assert f"f32[{vocabulary},{width}]" in program
    assert f"f32[{width},{vocabulary}]" not in program


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="reads a graph of TensorFlow"
)
def test_the_gradient_of_the_head_has_no_embedding_for_each_token():
    """Pins: `tf.einsum` with an ellipsis, whose gradient sums at the end."""
    import tensorflow as tf

    policy, tokens, width = make_policy(), 6, 16
    vocabulary = policy.backbone.vocabulary_size
    head, embedding = rollouts.Head(policy), policy.trainable_variables[0]
    assert tuple(embedding.shape) == (vocabulary, width)

    @tf.function
    def gradient(hidden):
        with tf.GradientTape() as tape:
            total = ops.sum(head.logits(hidden) ** 2)
        return tape.gradient(total, embedding.value)

    graph = gradient.get_concrete_function(tf.ones((tokens, width))).graph
    sizes = [
        tensor.shape.num_elements() or 0
        for operation in graph.get_operations()
        for tensor in operation.outputs
        if tensor.shape.rank is not None
    ]
    assert max(sizes) == vocabulary * max(tokens, width)
