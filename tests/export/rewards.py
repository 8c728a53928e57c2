"""A reward of its own class, in a module that another process can import."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_bond_tests")
class Liking(keras.layers.Layer):
    """Likes some tokens more than others; padding does not count."""

    def call(self, inputs):
        ids = ops.cast(inputs["token_ids"], "float32")
        mask = ops.cast(inputs["padding_mask"], "float32")
        return ops.sum(ops.sin(ids) * mask, axis=-1)


def make_reward():
    """Returns a functional model around `Liking`."""
    inputs = {
        "token_ids": keras.Input((None,), dtype="int32", name="token_ids"),
        "padding_mask": keras.Input((None,), dtype="bool", name="padding_mask"),
    }
    return keras.Model(inputs, Liking()(inputs))
