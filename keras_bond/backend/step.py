"""Interface between a trainer and the backend that runs its steps."""

import abc

import keras
from keras import ops


class Step(abc.ABC):
    """Abstract methods of a trainer that `StagedTrainer` calls.

    The `StagedTrainer` of each backend inherits from this class. It runs
    `collect`, `targets`, `call` and `compute_loss` with gradients in
    `truncated`, the optimizer, and `after_update`, in this order.

    Attributes:
        optimizer: `keras.optimizers.Optimizer`.
        pace: `Pace`, the wall time of the steps.
        stages: dict of the compiled stages.
        compiles_stages: bool. Whether to compile stages at all.
        jit_compiles_stages: bool. Whether TensorFlow compiles them with XLA.
        announces_stages: bool. Whether to print which stage is being compiled.
        ends_of_data: tuple of exceptions by which Keras knows the end of data.
    """

    compiles_stages = True
    jit_compiles_stages = True
    announces_stages = False
    ends_of_data = (StopIteration,)

    @abc.abstractmethod
    def collect(self, inputs, training):
        """Draws, reads and scores completions of a batch of prompts.

        It is Python that calls compiled stages, see `run_stage`. Returns a dict
        of tensors, the batch to train on.
        """

    def collected(self, data, training):
        """Collects a batch of what Keras passes to a step.

        Raises:
            RuntimeError: for what Keras would take for the end of the data.
        """
        if training:
            self.pace.begin_step(compiles="learn" not in self.stages)
        try:
            return self.collect(data[0], training)
        except self.ends_of_data as error:
            raise RuntimeError(
                "A reward must return scores, but an iterator that it reads "
                "has ended: give `next` a default, or start the iterator "
                f"again. Received: {type(error).__name__}"
            ) from error

    def announce(self, name):
        """Prints that a stage is about to be compiled, which takes a while.

        Args:
            name: str, the stage.
        """
        if self.announces_stages:
            print(f"Compiling `{name}`, once for each shape.", flush=True)

    @abc.abstractmethod
    def targets(self, batch):
        """Adds the training targets to a batch."""

    @abc.abstractmethod
    def truncated(self, batch, function):
        """Calls a function of `call`, with completions truncated if they fit.

        Args:
            batch: dict of tensors, what `call` is given.
            function: callable without arguments.

        Returns:
            what `function` returned.
        """

    @abc.abstractmethod
    def before_update(self):
        """Returns tensors that `after_update` compares or logs."""

    @abc.abstractmethod
    def is_good(self, batch, outputs, loss, gradients):
        """Whether the update is finite and of valid prompts, a bool tensor."""

    @abc.abstractmethod
    def after_update(self, batch, outputs, loss, before, is_good, norm):
        """Updates anchor and counters; returns the logged values."""

    @abc.abstractmethod
    def evaluate_batch(self, batch):
        """Logs an evaluation batch; returns the logged values."""

    @abc.abstractmethod
    def host_logs(self):
        """Logged values that are computed on the host, a dict of floats.

        They are added to those of `after_update` and `evaluate_batch`, which
        are compiled.
        """

    def with_host_logs(self, logs):
        """Ends a step: what it logs is complete.

        Args:
            logs: dict of tensors, those of `after_update` or `evaluate_batch`.
        """
        logs = {**logs, **self.host_logs()}
        if not self.pace.is_running:
            return logs
        # Waits for the device, as the progress bar would.
        ops.convert_to_numpy(logs["loss"])
        return {**logs, **self.pace.end_step()}

    def applies(self, batch, is_good):
        """Whether to call the optimizer, a bool scalar tensor.

        Keras's `LossScaleOptimizer` skips gradients that overflow itself, and
        must be called with them to lower its scale. Without any prompt that is
        valid there is no gradient, and no optimizer is called.

        Args:
            batch: dict of tensors, see `collect`.
            is_good: bool scalar tensor, see `is_good`.
        """
        scales_loss = keras.optimizers.LossScaleOptimizer
        if isinstance(self.optimizer, scales_loss):
            return ops.any(batch["valid"])
        return is_good


def all_finite(tensors):
    """Whether all values of a list of tensors are finite, a bool tensor.

    Args:
        tensors: list of tensors; entries may be `None`.
    """
    finite = [ops.all(ops.isfinite(x)) for x in tensors if x is not None]
    # XLA fuses a reduction of so few values into each update of a variable that
    # depends on it, which takes minutes to compile where there are hundreds. It
    # fuses no sort.
    return ops.sort(ops.cast(ops.stack(finite), "int32"))[0] == 1


def global_norm(tensors):
    """Euclidean norm of all values together, which may have large squares.

    Args:
        tensors: list of float tensors; entries may be `None`.

    Returns:
        float32 scalar.
    """
    tensors = [ops.cast(x, "float32") for x in tensors if x is not None]
    norms = ops.stack([_norm(tensor) for tensor in tensors])
    return _norm(norms)


def _norm(values):
    largest = ops.max(ops.absolute(values))
    scaled = values / ops.where(largest > 0, largest, 1.0)
    return largest * ops.sqrt(ops.sum(ops.square(scaled)))
