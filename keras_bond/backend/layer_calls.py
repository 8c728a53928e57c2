"""Contexts in which the layers of a network run in another way."""

import contextlib

import keras
from keras import ops
from keras import tree

from keras_bond import backend

# In place of an attribute that only the class of a layer has.
CLASS_HAS = object()


@contextlib.contextmanager
def replaced(replacements):
    """Returns a context in which attributes of layers are replaced.

    This relies on `keras.Layer.__call__` (keras/src/layers/layer.py) running
    `self.call(...)`, which Python looks up on the instance before the class.
    `test_prompts_are_read_once_at_their_own_length` in
    tests/rollouts/test_decoder.py fails if a replaced `call` is not used.

    Args:
        replacements: dict that maps `(layer, name of the attribute)` to its
            value, of a method to a callable.
    """
    own = [vars(layer).get(name, CLASS_HAS) for layer, name in replacements]
    # `keras.Layer.__setattr__` would track a callable as part of the layer.
    for (layer, name), value in replacements.items():
        object.__setattr__(layer, name, value)
    try:
        yield
    finally:
        for (layer, name), value in zip(replacements, own):
            if value is CLASS_HAS:
                object.__delattr__(layer, name)
            else:
                object.__setattr__(layer, name, value)


def rematerialized(layers):
    """Returns a context in which layers keep only their inputs.

    The backward pass recomputes their activations, which saves memory and costs
    one more forward pass.

    Args:
        layers: list of `keras.Layer`.
    """
    return replaced({(x, "call"): _rematerialized_call(x) for x in layers})


def _rematerialized_call(layer):
    call = layer.call

    def rematerialized_call(*args, **kwargs):
        # A gradient reaches only what the function is given: keywords carry
        # tensors too, such as the shared keys and values of Gemma 4.
        flat = tree.flatten((args, kwargs))
        places = [i for i, x in enumerate(flat) if ops.is_tensor(x)]

        def recomputed(*tensors):
            filled = list(flat)
            for place, tensor in zip(places, tensors):
                filled[place] = tensor
            args_, kwargs_ = tree.pack_sequence_as((args, kwargs), filled)
            return call(*args_, **kwargs_)

        return backend.rematerialize(recomputed, layer.variables)(
            *[flat[place] for place in places]
        )

    return rematerialized_call


def untransposed(layer):
    """Returns a context in which tied logits need no copy of the embedding.

    `ReversibleEmbedding.call` (keras/src/layers/core/reversible_embedding.py)
    transposes the embedding, and XLA does so once before a loop that multiplies
    with it: that copy is as large as the embedding. Here the product itself
    sums over the last axes of both.
    `test_the_head_holds_no_copy_of_the_embedding` in
    tests/rollouts/test_network.py fails if a copy is back.

    Args:
        layer: what computes logits of hidden states; other layers than a
            `keras.layers.ReversibleEmbedding` with tied weights stay as they
            are.
    """
    is_tied = (
        isinstance(layer, keras.layers.ReversibleEmbedding)
        and layer.tie_weights
        and layer.quantization_mode is None
    )
    if not is_tied:
        return replaced({})

    def call(inputs, reverse):
        kernel = layer.embeddings
        if layer.reverse_dtype is not None:
            inputs = ops.cast(inputs, layer.reverse_dtype)
            kernel = ops.cast(kernel, layer.reverse_dtype)
        # With an ellipsis, TensorFlow's gradient would be an embedding for each
        # token before it is summed.
        tokens = "abc"[: len(inputs.shape) - 1]
        equation = f"{tokens}d,vd->{tokens}v"
        logits = ops.einsum(equation, inputs, kernel)
        if layer.logit_soft_cap is None:
            return logits
        return ops.tanh(logits / layer.logit_soft_cap) * layer.logit_soft_cap

    return replaced({(layer, "call"): call})


def flattened(backbone):
    """Returns a context in which dense layers see all tokens along one axis.

    The gradient of a product `(rows, tokens, width) · (width, ...)` sums over
    two axes. XLA on CPUs transposes slowly for it, and takes half the time if
    rows and tokens are one axis. The forward pass gains nothing, so layers
    whose kernels are frozen, as all are with LoRA, stay as they are; on other
    devices the context does nothing.

    Args:
        backbone: a `keras_hub.models.Backbone`.
    """
    flat = {}
    if backend.prefers_flat_products():
        for layer in backbone._flatten_layers():
            if isinstance(layer, keras.layers.EinsumDense) and _learns(layer):
                if equation := _flat_equation(layer):
                    flat[layer, "call"] = _flat_call(layer, equation)
    return replaced(flat)


def _learns(layer):
    return bool(layer.trainable_variables) and not layer.lora_enabled


def _flat_equation(layer):
    """Turns `"btd,df->btf"` into `"td,df->tf"`; `None` if impossible."""
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
