"""What the parts of a training step are called, on every backend."""

import abc

import keras
from keras import ops


class Step(abc.ABC):
    """Declares what a trainer gives to the mix-in that runs its steps.

    `StagedTrainer` of each backend inherits from it and runs, in this order,
    `collect`, `targets`, `call` and `compute_loss` with their gradients, the
    optimizer, and `after_update`.

    Attributes:
        optimizer: `keras.optimizers.Optimizer`.
        compiles_stages: bool. Whether stages are compiled at all.
        jit_compiles_stages: bool. Whether TensorFlow compiles them with XLA.
    """

    compiles_stages = True
    jit_compiles_stages = True

    @abc.abstractmethod
    def collect(self, inputs, training):
        """Draws, reads and scores completions of a batch of prompts.

        Python between compiled stages, see `run_stage`. Returns a dict of
        tensors, the batch that is learned from.
        """

    @abc.abstractmethod
    def targets(self, batch):
        """Adds to a batch what is learned from its rewards."""

    @abc.abstractmethod
    def watch_weights(self):
        """Copies what `after_update` compares the weights with."""

    @abc.abstractmethod
    def is_good(self, batch, loss, gradients):
        """Whether a step may be taken, a bool scalar tensor."""

    @abc.abstractmethod
    def after_update(self, batch, outputs, loss, watched, is_good):
        """Moves the anchor and the counters; returns the logged numbers."""

    @abc.abstractmethod
    def evaluate_batch(self, batch):
        """Logs a batch that is not learned from; returns the numbers."""

    def protects_itself(self):
        """Whether the optimizer skips gradients that overflow by itself.

        It must see them then: Keras's `LossScaleOptimizer` lowers its scale.
        """
        return isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)


def all_finite(tensors):
    """Whether every value of some tensors is finite, a bool scalar tensor.

    Args:
        tensors: list of tensors, or `None` where there is none.
    """
    finite = [ops.all(ops.isfinite(x)) for x in tensors if x is not None]
    return ops.all(ops.stack(finite))
