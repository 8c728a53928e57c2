"""A Keras model whose step is Python between separately compiled stages."""

import keras

from keras_bond import backend
from keras_bond.training import checks


class StagedModel(backend.StagedTrainer, keras.Model):
    """Adds `compile` to the stages of `keras_bond.backend.StagedTrainer`.

    A child has a `policy` and its sampling `temperature`.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._stages = {}
        self._compiles_stages = True
        self._jit_compiles_stages = True

    def compile(
        self,
        optimizer="adam",
        *,
        run_eagerly=False,
        jit_compile="auto",
        steps_per_execution=1,
        sampler="random",
        auto_scale_loss=True,
    ):
        """Sets the optimizer. The loss is the trainer's own.

        Args:
            optimizer: `keras.optimizers.Optimizer`, or its name. The paper uses
                Adam with a learning rate of 3e-6 and 100 warm-up steps for
                Gemma 2B and 7B.
            run_eagerly: bool. Whether to run the stages of a step uncompiled,
                for debugging. Defaults to False.
            jit_compile: bool or `"auto"`. Whether TensorFlow compiles the
                stages with XLA; JAX always does. Defaults to `"auto"`: yes.
            steps_per_execution: int. See `keras.Model.compile`.
            sampler: `"random"`, the only law that the losses hold for.
            auto_scale_loss: bool. See `keras.Model.compile`.

        Raises:
            ValueError: if the optimizer cannot move the policy's variables, or
                `sampler` does not draw from the full distribution.
        """
        checks.check_sampler(sampler, self.temperature)
        optimizer = keras.optimizers.get(optimizer)
        checks.check_optimizer(optimizer, self.policy.trainable_variables)
        checks.warn_high_learning_rate(optimizer)
        # The step itself is Python between compiled stages, on every backend.
        super().compile(
            optimizer=optimizer,
            run_eagerly=True,
            jit_compile=False,
            steps_per_execution=steps_per_execution,
            auto_scale_loss=auto_scale_loss,
        )
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        self._compiles_stages = not run_eagerly
        self._jit_compiles_stages = jit_compile in ("auto", True)
        self._stages = {}
        self._compile_arguments = {
            "run_eagerly": run_eagerly,
            "jit_compile": jit_compile,
            "steps_per_execution": steps_per_execution,
            "auto_scale_loss": auto_scale_loss,
        }

    def get_compile_config(self):
        if not self.compiled:
            return {}
        optimizer = keras.saving.serialize_keras_object(self.optimizer)
        return {"optimizer": optimizer, **self._compile_arguments}

    def compile_from_config(self, config):
        optimizer = keras.saving.deserialize_keras_object(config["optimizer"])
        self.compile(**{**config, "optimizer": optimizer})
