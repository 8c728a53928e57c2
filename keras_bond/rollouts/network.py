"""Interface to KerasHub language models: cache, output layer, layer calls.

No other module depends on how KerasHub lays out a cache, how it computes
logits, or which layers a backbone has.
"""

import contextlib
import inspect
import math

import keras
from keras import ops
from keras import tree

from keras_bond import backend
from keras_bond.formulas import likelihood
from keras_bond.formulas import sequences
from keras_bond.rollouts import sizes

# Two lengths; the axis of a cache that differs between them is the token axis.
PROBES = (8, 16)
# Maximum number of logits held at once: 64 MiB in float32.
MOST_LOGITS = 2**24


class CacheBuilder(keras.Operation):
    """Creates empty key-value caches for a policy and enlarges filled ones.

    KerasHub's decoders share `call_with_cache`, but the layout of the cache
    differs. The layout is inferred once, symbolically, without computing
    anything.

    Args:
        policy: a `keras_hub.models.CausalLM`.

    Raises:
        ValueError: if the first axis of a cache is not the batch axis, or if
            there is not exactly one token axis.
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
        """Returns the bytes of a cache of `batch_size` rows by `length`."""
        leaves = zip(
            keras.tree.flatten(self.spec), keras.tree.flatten(self.length_axes)
        )
        return sum(
            math.prod(_resized(leaf.shape, axis, batch_size, length))
            * sizes.itemsize(leaf.dtype)
            for leaf, axis in leaves
        )

    def grow(self, cache, num_samples, length):
        """Repeats every row and makes room for more tokens.

        Args:
            cache: a cache of `(batch, ...)`.
            num_samples: int. Number of adjacent copies of each row.
            length: int. Number of tokens that the new cache holds.

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
    """The output layer of a policy, applied to a few tokens at a time.

    A tensor `(batch, length, vocabulary)` would be the largest of a training
    step, as the vocabulary of Gemma 3 has 262,144 tokens. The head is therefore
    applied to a few tokens at a time and recomputed in the backward pass.

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
            hidden: float tensor `(..., width)`, hidden states that predict the
                tokens.
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
        """Applies a function of tokens to a few of them at a time.

        Args:
            function: callable that takes `tensors` with one token axis in place
                of the leading axes, and returns a tensor `(tokens,)`.
            tensors: dict of tensors with the same leading axes as `"ids"`.

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
        """Returns the number of tokens whose logits are held at once.

        If the embedding is trained, its gradient has the size of the logits of
        `width` tokens anyway, so fewer tokens would save little memory.
        """
        vocabulary, width = self.embedding.input_dim, self.embedding.output_dim
        tokens = max(1, MOST_LOGITS // vocabulary)
        return (
            max(tokens, width) if self.embedding.trainable_variables else tokens
        )


def _into_parts(tensor, num_parts):
    """Reshapes `(tokens, ...)` to `(parts, size, ...)`, zero-padded."""
    num_tokens = tensor.shape[0]
    size = -(-num_tokens // num_parts)
    padding = [(0, 0)] * len(tensor.shape)
    padding[0] = (0, num_parts * size - num_tokens)
    padded = ops.pad(tensor, padding) if padding[0][1] else tensor
    return ops.reshape(padded, (num_parts, size, *tensor.shape[1:]))


@contextlib.contextmanager
def replaced_calls(replacements):
    """Returns a context in which layers have a different `call`.

    This relies on `keras.Layer.__call__` (keras/src/layers/layer.py) running
    `self.call(...)`, which Python looks up on the instance before the class.
    `test_prompts_are_read_once_at_their_own_length` in
    tests/rollouts/test_decoder.py fails if a replaced `call` is not used.

    Args:
        replacements: dict that maps each `keras.Layer` to a callable.
    """
    for layer, call in replacements.items():
        # `keras.Layer.__setattr__` would track the callable as part of the
        # layer.
        object.__setattr__(layer, "call", call)
    try:
        yield
    finally:
        for layer in replacements:
            object.__delattr__(layer, "call")


def rematerialized(layers):
    """Returns a context in which layers keep only their inputs.

    The backward pass recomputes their activations, which saves memory and costs
    one more forward pass.

    Args:
        layers: list of `keras.Layer`.
    """
    return replaced_calls({x: _rematerialized_call(x) for x in layers})


def _rematerialized_call(layer):
    call = layer.call

    def rematerialized_call(*tensors, **kwargs):
        return backend.rematerialize(
            lambda *tensors: call(*tensors, **kwargs), layer.variables
        )(*tensors)

    return rematerialized_call


def flattened(policy):
    """Returns a context in which dense layers see all tokens along one axis.

    The gradient of a product `(rows, tokens, width) · (width, ...)` sums over
    two axes. XLA on CPUs transposes slowly for it, and takes half the time if
    rows and tokens are one axis. On other devices the context does nothing.

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


def without_head(policy):
    """Returns a context in which a policy does not compute logits.

    XLA removes unused logits by itself, but PyTorch would compute all of them.

    Args:
        policy: a `keras_hub.models.CausalLM`.
    """
    embedding = policy.backbone.token_embedding
    call = embedding.call

    def embed_only(inputs, reverse=False):
        return inputs if reverse else call(inputs)

    return replaced_calls({embedding: embed_only})
