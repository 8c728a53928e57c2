"""Values, gradients and p-values, on the backend of the run."""

import keras
import numpy as np
import scipy.stats

from keras_bond.rewards import scores as scores_lib


def values_of(variables):
    """NumPy copies of variables."""
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def gradient(function, point):
    """Gradient of a scalar function at a NumPy array, by the backend."""

    def safe(x):
        # PyTorch and TensorFlow object to a loss without any gradient.
        return function(x) + 0.0 * keras.ops.sum(x)

    x = keras.ops.convert_to_tensor(point, "float32")
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        result = jax.grad(safe)(x)
    elif backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = safe(x)
        result = tape.gradient(loss, x)
    else:
        import torch

        x = x.detach().requires_grad_()
        result = torch.autograd.grad(safe(x), x)[0]
    return keras.ops.convert_to_numpy(result)


def variable_gradients(loss, variables):
    """A loss without arguments and its gradients, compiled as in training.

    Returns:
        `(value, gradients)`: float, and list of arrays.
    """
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        def stateless(values):
            mapping = list(zip(variables, values))
            with keras.StatelessScope(state_mapping=mapping):
                return loss()

        values = [v.value for v in variables]
        value, gradients = jax.jit(jax.value_and_grad(stateless))(values)
    elif backend == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True, autograph=False)
        def compiled():
            sources = [v.value for v in variables]
            with tf.GradientTape() as tape:
                value = loss()
            gradients = tape.gradient(value, sources)
            return value, [tf.convert_to_tensor(g) for g in gradients]

        value, gradients = compiled()
    else:
        import torch

        value = loss()
        gradients = torch.autograd.grad(value, [v.value for v in variables])
    return float(ops_to_numpy(value)), [ops_to_numpy(g) for g in gradients]


def ops_to_numpy(tensor):
    return np.array(keras.ops.convert_to_numpy(tensor))


def chi_square_p_value(observed, probabilities):
    """How likely counts at least this far from their distribution are.

    Cells expected fewer than 5 times are pooled into one.
    """
    observed = np.asarray(observed, "float64").ravel()
    expected = np.asarray(probabilities, "float64").ravel() * observed.sum()
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] == 0:
        assert observed[-1] == 0, "something of probability 0 happened"
        observed, expected = observed[:-1], expected[:-1]
    statistic = np.sum((observed - expected) ** 2 / expected)
    return float(scipy.stats.chi2.sf(statistic, len(expected) - 1))


def tensors_of(batch):
    """A batch of arrays with float64 `rewards`, as the device gets it."""
    batch = {**batch, **scores_lib.for_device(batch["rewards"])}
    return {k: keras.ops.convert_to_tensor(v) for k, v in batch.items()}
