"""What `compile` was called with, kept in the saved model."""

import keras


class CompileConfig:
    """A mix-in before `keras.Model` for models with losses of their own.

    A child keeps the arguments of its `compile` but for the optimizer in
    `_compile_arguments`.
    """

    def get_compile_config(self):
        if not self.compiled:
            return {}
        optimizer = keras.saving.serialize_keras_object(self.optimizer)
        return {"optimizer": optimizer, **self._compile_arguments}

    def compile_from_config(self, config):
        optimizer = keras.saving.deserialize_keras_object(config["optimizer"])
        self.compile(**{**config, "optimizer": optimizer})
