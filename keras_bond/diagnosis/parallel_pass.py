"""What the network says of given completions, at given values."""

import contextlib

import keras
from keras import ops

from keras_bond import backend
from keras_bond import rollouts
from keras_bond.diagnosis.patient import TEMPERATURE
from keras_bond.diagnosis.patient import to_numpy
from keras_bond.diagnosis.surrogate import log_softmax
from keras_bond.rollouts import sequences
from keras_bond.training import quantile_model

NEEDED = ("prompt_ids", "prompt_lengths", "completion_ids", "mask")


class ParallelPass:
    """The parallel pass over a batch of completions.

    Args:
        patient: a `Patient`.

    Call arguments:
        batch: dict of arrays, see `Lesson.batches`.
        values: list of float arrays, one for each of `patient.trained`.
        in_float32: bool. Whether to compute in float32 whatever the precision
            of the policy: differences of losses in bfloat16 are noise.

    Returns of a call:
        `(log_probs, quantile_logits)`: log-softmax at the temperature, float64
        `(batch, samples, length, vocabulary)`, and float32
        `(batch, samples, 2)`.
    """

    def __init__(self, patient):
        self.patient = patient
        self._forward = backend.compile_forward(
            self._look, patient.bond.variables, static_argnums=(2,)
        )

    def __call__(self, batch, values, in_float32=False):
        # In float32 both are the same: compile it once.
        in_float32 = in_float32 and not self.patient.is_float32
        logits, quantile_logits = self._forward(
            {name: ops.convert_to_tensor(batch[name]) for name in NEEDED},
            [ops.convert_to_tensor(value, "float32") for value in values],
            in_float32,
        )
        shape = (*batch["mask"].shape, -1)
        logits = to_numpy(ops.cast(logits, "float32")).reshape(shape)
        return log_softmax(logits, TEMPERATURE), to_numpy(quantile_logits)

    def _look(self, batch, values, in_float32):
        policy, samples = self.patient.policy, batch["mask"].shape[1]
        length = batch["mask"].shape[2]
        with self._scope(values, in_float32), _precision(policy, in_float32):
            hidden = rollouts.completion_hidden(
                policy,
                sequences.repeat_rows(batch["prompt_ids"], samples),
                sequences.repeat_rows(batch["prompt_lengths"], samples),
                ops.reshape(batch["completion_ids"], (-1, length)),
                ops.reshape(batch["mask"], (-1, length)),
            )
            bond = self.patient.bond
            return bond.head.logits(hidden), quantile_model.judge(
                bond.quantile_model, batch, bond.stop_token_ids
            )

    def _scope(self, values, in_float32):
        """All variables as they are, the trained ones at `values`.

        A mapping given at once would be cast to the dtype of the variables.
        """
        variables = self.patient.bond.variables
        pairs = [(v, v.value) for v in variables]
        pairs += zip(self.patient.trained, values)
        scope = keras.StatelessScope()
        for variable, value in pairs:
            is_float = keras.backend.is_float_dtype(variable.dtype)
            dtype = "float32" if in_float32 and is_float else variable.dtype
            scope.add_update((variable, ops.cast(value, dtype)))
        return scope


@contextlib.contextmanager
def _precision(policy, in_float32):
    """Lets every layer of `policy` compute in float32 for a while."""
    layers = policy._flatten_layers() if in_float32 else []
    before = [(layer, layer.dtype_policy) for layer in layers]
    try:
        for layer, _ in before:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, dtype_policy in before:
            layer.dtype_policy = dtype_policy
