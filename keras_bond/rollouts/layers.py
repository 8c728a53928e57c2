"""Layers of a policy that do something else for a while."""

import contextlib

import keras
from keras import ops

from keras_bond import backend


@contextlib.contextmanager
def replaced_calls(replacements):
    """Gives layers another `call` while the context lasts.

    Args:
        replacements: dict from each `keras.Layer` to a callable.
    """
    for layer, call in replacements.items():
        # Past Keras's own `__setattr__`, which tracks what a layer holds.
        object.__setattr__(layer, "call", call)
    try:
        yield
    finally:
        for layer in replacements:
            object.__delattr__(layer, "call")


def rematerialized(layers):
    """A context in which layers keep no activations but their inputs.

    The backward pass computes them again: less memory, one more forward pass.

    Args:
        layers: list of `keras.Layer`.
    """
    return replaced_calls({layer: _forgetful(layer) for layer in layers})


def _forgetful(layer):
    call = layer.call

    def forgetful_call(*tensors, **kwargs):
        return backend.rematerialize(
            lambda *tensors: call(*tensors, **kwargs), layer.variables
        )(*tensors)

    return forgetful_call


def flattened(policy):
    """A context in which dense layers see all tokens along one axis.

    The gradient of a product `(rows, tokens, width) · (width, ...)` sums over
    two axes, for which XLA transposes on CPUs at a snail's pace; with rows and
    tokens along one axis it takes half the time. Where that is no matter, the
    context does nothing.

    Args:
        policy: a `keras_hub.models.CausalLM`.
    """
    flat = {}
    if backend.prefers_flat_products():
        for layer in policy.backbone._flatten_layers():
            if isinstance(layer, keras.layers.EinsumDense):
                if equation := _flat_equation(layer):
                    flat[layer] = _flat_call(layer, equation)
    return replaced_calls(flat)


def _flat_equation(layer):
    """`"btd,df->btf"` as `"bd,df->bf"`, or `None` where that is impossible."""
    inputs, kernel, outputs = layer.equation.replace("->", ",").split(",")
    rows = inputs[:2]
    shared = rows == outputs[:2] and rows.isalpha()
    if not shared or set(rows) & set(kernel) or layer.quantization_mode:
        return None
    return f"{inputs[1:]},{kernel}->{outputs[1:]}"


def _flat_call(layer, equation):
    call, whole_equation = layer.call, layer.equation

    def flat_call(inputs, **kwargs):
        leading = inputs.shape[:2]
        inputs = ops.reshape(inputs, (-1, *inputs.shape[2:]))
        layer.equation = equation
        try:
            outputs = call(inputs, **kwargs)
        finally:
            layer.equation = whole_equation
        return ops.reshape(outputs, (*leading, *outputs.shape[1:]))

    return flat_call


def without_head(policy):
    """A context in which a policy's logits are not computed.

    XLA drops logits that nobody reads; PyTorch would compute them all.

    Args:
        policy: a `keras_hub.models.CausalLM`.
    """
    embedding = policy.backbone.token_embedding
    call = embedding.call

    def embed_only(inputs, reverse=False):
        return inputs if reverse else call(inputs)

    return replaced_calls({embedding: embed_only})
