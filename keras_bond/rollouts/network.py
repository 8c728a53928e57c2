"""The door to a network: what is asked of a KerasHub language model.

Its cache, whatever the layout; its output layer, where memory goes; and layers
that do something else for a while.
"""

import contextlib
import inspect
import math

import keras
from keras import ops
from keras import tree

from keras_bond import backend
from keras_bond.formulas import likelihood
from keras_bond.rollouts import sequences
from keras_bond.rollouts import sizes

# Two lengths that tell which axis of a cache is that of the tokens.
PROBES = (8, 16)
# Entries of the logits that are held at once: 64 MiB in float32.
MOST_LOGITS = 2**24


class CacheBuilder(keras.Operation):
    """Makes empty caches for a policy, and lets filled ones grow.

    KerasHub's decoders share `call_with_cache`, but each lays its cache out in
    its own way. The layout is asked for once, without computing anything.

    Args:
        policy: a `keras_hub.models.CausalLM`.

    Raises:
        ValueError: if the first axis of a cache is not the batch, or none is
            that of the tokens.
    """

    def __init__(self, policy):
        super().__init__()
        self.policy = policy
        short, long = (self._layout(length) for length in PROBES)
        self.spec = short
        self.length_axes = keras.tree.map_structure(_length_axis, short, long)

    def _layout(self, length):
        token_ids = keras.KerasTensor((1, length), dtype="int32")
        return self.compute_output_spec(token_ids)

    def call(self, token_ids):
        build = self.policy._build_cache
        num_extras = len(inspect.signature(build).parameters) - 1
        return build(token_ids, *[None] * num_extras)[1]

    def empty(self, batch_size, length):
        """Returns a cache of zeros for `batch_size` rows of `length` tokens."""
        return keras.tree.map_structure(
            lambda leaf, axis: ops.zeros(
                _resized(leaf.shape, axis, batch_size, length), leaf.dtype
            ),
            self.spec,
            self.length_axes,
        )

    def num_bytes(self, batch_size, length):
        """Bytes of a cache for `batch_size` rows of `length` tokens."""
        leaves = zip(
            keras.tree.flatten(self.spec), keras.tree.flatten(self.length_axes)
        )
        return sum(
            math.prod(_resized(leaf.shape, axis, batch_size, length))
            * sizes.itemsize(leaf.dtype)
            for leaf, axis in leaves
        )

    def grow(self, cache, num_samples, length):
        """Repeats every row, and makes room for more tokens.

        Args:
            cache: a cache of `(batch, ...)`.
            num_samples: int. Copies of each row, side by side.
            length: int. Tokens that the new cache holds.

        Returns:
            a cache of `(batch * num_samples, ...)`.
        """

        def grow_leaf(leaf, axis):
            room = [(0, 0)] * len(leaf.shape)
            room[axis] = (0, length - leaf.shape[axis])
            return ops.pad(sequences.repeat_rows(leaf, num_samples), room)

        return keras.tree.map_structure(grow_leaf, cache, self.length_axes)


def _resized(shape, axis, batch_size, length):
    shape = [batch_size, *shape[1:]]
    shape[axis] = length
    return tuple(shape)


def _length_axis(short, long):
    differing = [
        axis
        for axis, sizes in enumerate(zip(short.shape, long.shape))
        if sizes != (sizes[0], sizes[0])
    ]
    sizes = [(short.shape[axis], long.shape[axis]) for axis in differing]
    if short.shape[0] == 1 and sizes == [PROBES]:
        return differing[0]
    raise ValueError(
        "The key-value cache of `policy` must have the batch as its first "
        "axis and one axis for the tokens, as KerasHub's decoders do. "
        f"Received: a cache of shape {short.shape} for 1 row of {PROBES[0]} "
        f"tokens, and {long.shape} for {PROBES[1]}"
    )


class Head:
    """The output layer, applied to some tokens at a time.

    An array of `(batch, length, vocabulary)` is larger than all else of a
    training step: Gemma 3 has 262,144 tokens. So the head is applied to some
    tokens at a time, and its result is computed again for the gradient.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        temperature: float, that of the sampler. Defaults to 1.
    """

    def __init__(self, policy, temperature=1.0):
        self.embedding = policy.backbone.token_embedding
        self.temperature = temperature

    def logits(self, hidden):
        """Logits `(..., vocabulary)` of hidden states `(..., width)`."""
        return self.embedding(hidden, reverse=True)

    def token_log_probs(self, hidden, token_ids):
        """Log-probability of each token, see `likelihood.token_log_probs`.

        Args:
            hidden: float tensor `(..., width)`: those that predict the tokens.
            token_ids: int32 tensor `(...)`.

        Returns:
            float32 tensor `(...)`, in nats.
        """

        def log_probs(part):
            return likelihood.token_log_probs(
                self.logits(part["hidden"]), part["ids"], self.temperature
            )

        return self.map_tokens(log_probs, {"hidden": hidden, "ids": token_ids})

    def map_tokens(self, function, tensors):
        """Applies a function of single tokens to some of them at a time.

        Args:
            function: callable that takes `tensors` with one axis of tokens in
                place of the leading ones, and returns a tensor `(tokens,)`.
            tensors: dict of tensors with the leading axes of `"ids"`.

        Returns:
            tensor of the shape of `"ids"`.
        """
        leading = tensors["ids"].shape
        flat = {
            name: ops.reshape(tensor, (-1, *tensor.shape[len(leading) :]))
            for name, tensor in tensors.items()
        }
        num_tokens = math.prod(leading)
        num_parts = -(-num_tokens // self.tokens_at_once())
        if num_parts <= 1:
            return ops.reshape(function(flat), leading)
        parts = tree.map_structure(lambda x: _into_parts(x, num_parts), flat)
        mapped = backend.map_parts(function, parts, self.embedding.variables)
        return ops.reshape(ops.reshape(mapped, (-1,))[:num_tokens], leading)

    def tokens_at_once(self):
        """How many tokens' logits are held at once.

        Where the embedding is trained, its gradient, which is added up over
        the parts, is of the size of `width` tokens' logits anyway.
        """
        vocabulary, width = self.embedding.input_dim, self.embedding.output_dim
        tokens = max(1, MOST_LOGITS // vocabulary)
        return (
            max(tokens, width) if self.embedding.trainable_variables else tokens
        )


def _into_parts(tensor, num_parts):
    """`(tokens, ...)` as `(parts, tokens a part, ...)`, padded with zeros."""
    num_tokens = tensor.shape[0]
    size = -(-num_tokens // num_parts)
    padding = [(0, 0)] * len(tensor.shape)
    padding[0] = (0, num_parts * size - num_tokens)
    padded = ops.pad(tensor, padding) if padding[0][1] else tensor
    return ops.reshape(padded, (num_parts, size, *tensor.shape[1:]))


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
