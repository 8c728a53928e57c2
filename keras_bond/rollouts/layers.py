"""Layers of a policy that do something else for a while."""

import contextlib

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
