"""LoRA adapters of several weight sets in one pass of the network."""

import keras
from keras import ops

from keras_bond.backend import layer_calls

FACTORS = ("lora_kernel_a", "lora_kernel_b")


def only_differ_in_adapters(policy):
    """Whether weight sets of a policy differ in nothing but LoRA factors.

    These must belong to dense layers whose output is linear in the kernel, and
    whose kernel is not quantized.

    Args:
        policy: a `keras_hub.models.CausalLM`.
    """
    layers = _adapted_layers(policy)
    found = {id(getattr(x, name)) for x in layers for name in FACTORS}
    trained = {id(variable) for variable in policy.trainable_variables}
    return trained == found


class AdaptersOfRows:
    """Runs each row of a batch with the adapters of one of several sets.

    The product with the frozen kernel is computed once for all rows. The
    factors of all sets are concatenated along the rank, and each row keeps
    those of its own set between the two thin products: `W x + B (m ⊙ A x)`.
    Keras instead adds `B A` to the kernel first, which is equal up to rounding.

    Args:
        policy: a `keras_hub.models.CausalLM`, see `only_differ_in_adapters`.
        sets: list of lists of tensors, the values of the policy's trainable
            variables in each weight set.
    """

    def __init__(self, policy, sets):
        places = {id(v): i for i, v in enumerate(policy.trainable_variables)}

        def of_sets(variable, layer, axis):
            place = places[id(variable)]
            values = [ops.cast(s[place], layer.compute_dtype) for s in sets]
            return ops.concatenate(values, axis=axis)

        self.num_sets = len(sets)
        self.factors = [
            (
                layer,
                of_sets(layer.lora_kernel_a, layer, -1),
                of_sets(layer.lora_kernel_b, layer, 0),
            )
            for layer in _adapted_layers(policy)
        ]

    def using(self, set_index):
        """Returns a context in which each row runs with its own adapters.

        Args:
            set_index: int32 tensor `(rows,)`. Index in `sets` of each row.
        """
        is_own = ops.one_hot(set_index, self.num_sets, dtype="float32")
        return layer_calls.replaced(
            {
                (layer, "call"): _call(layer, down, up, is_own)
                for layer, down, up in self.factors
            }
        )


def _adapted_layers(policy):
    trained = {id(variable) for variable in policy.trainable_variables}
    return [
        layer
        for layer in policy.backbone._flatten_layers()
        if id(getattr(layer, "lora_kernel_a", None)) in trained
        and _is_supported(layer)
    ]


def _is_supported(layer):
    linear = (None, keras.activations.linear)
    if layer.quantization_mode or getattr(layer, "activation", 0) not in linear:
        return False
    if isinstance(layer, keras.layers.EinsumDense):
        # Rows come first, and the last axis of the kernel is one of the output.
        inputs, kernel, outputs = layer.equation.replace("->", ",").split(",")
        has_rows = inputs[0] == outputs[0] and inputs[0].isalpha()
        return has_rows and kernel[-1] == outputs[-1] != inputs[-1]
    return isinstance(layer, keras.layers.Dense)


def _call(layer, down, up, is_own):
    """The `call` of a layer for rows of several sets."""

    def call(inputs, training=None):
        thin = _product(layer, inputs, down)
        mask = ops.repeat(is_own, layer.lora_rank, axis=1)
        mask = ops.reshape(mask, (-1, *[1] * (thin.ndim - 2), mask.shape[1]))
        own = ops.matmul(thin * ops.cast(mask, thin.dtype), up)
        outputs = _product(layer, inputs, layer._kernel)
        outputs += (layer.lora_alpha / layer.lora_rank) * own
        return outputs if layer.bias is None else outputs + layer.bias

    return call


def _product(layer, inputs, kernel):
    if isinstance(layer, keras.layers.EinsumDense):
        return ops.einsum(layer.equation, inputs, kernel)
    return ops.matmul(inputs, kernel)
