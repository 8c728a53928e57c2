"""Checks of the devices that hold a trainer's variables."""

import contextlib

import keras

from keras_bond import backend
from keras_bond.backend import devices


def check_placement(policy):
    """Raises an error if a policy is not placed as its trainer would be.

    Raises:
        ValueError: if training is distributed by anything but
            `keras.distribution`, or if the policy was built under a
            distribution other than the current one.
    """
    _check_distributor()
    distribution = keras.distribution.distribution()
    variables = policy.variables
    needed = (
        1 if distribution is None else distribution.device_mesh.devices.size
    )
    held = max(devices.num_devices(variable) for variable in variables)
    if held != needed:
        raise ValueError(
            "The policy must be built under the distribution that it is "
            "trained with: call `keras.distribution.set_distribution(...)` "
            "first, then build policy and trainer, and leave it set while "
            f"training. Received: a policy on {held} devices, a distribution "
            f"over {needed}"
        )
    _check_split(distribution, variables)


def check_reward(scorer):
    """Raises an error if a Keras model is the reward in multi-process training.

    Raises:
        ValueError: naming the reward.
    """
    if devices.num_processes() > 1 and scorer.variables():
        raise ValueError(
            "If several processes train together, each scores its own rows, "
            "which is not possible with a Keras model sharded over all "
            "processes: use a Python function as the reward, or train in one "
            "process. "
            f"Received: reward=`{scorer.name}`, {devices.num_processes()} "
            "processes"
        )


def _check_distributor():
    strategy = backend.foreign_strategy()
    if strategy is not None:
        raise ValueError(
            "Training on several devices needs `keras.distribution` and the "
            "JAX backend: a step with sampling and rewards on the host does "
            "not run inside a strategy of the backend. Received: "
            f"{strategy}, the {backend.name} backend"
        )
    distribution = keras.distribution.distribution()
    if distribution is not None:
        backend.check_distributes(type(distribution).__name__)


@contextlib.contextmanager
def sharing_batches(batches):
    """Returns a context in which each process takes its own rows of a batch.

    Keras shards only `tf.data.Dataset` inputs and raises an error for others,
    so its sharding is turned off: `batches` select their own rows.

    Args:
        batches: a `PromptBatches` or `PromptStream`.

    Raises:
        ValueError: if the processes do not have the same prompts.
    """
    distribution = keras.distribution.distribution()
    if distribution is None or devices.num_processes() == 1:
        yield
        return
    if not devices.is_same_everywhere(batches.fingerprint()):
        raise ValueError(
            "Every process must be given all prompts in the same order; it "
            "takes its own rows of each batch. Received: different prompts in "
            f"process {devices.process_index()} than in other processes"
        )
    asked = distribution.auto_shard_dataset
    distribution.auto_shard_dataset = False
    try:
        yield
    finally:
        distribution.auto_shard_dataset = asked


def _check_split(distribution, variables):
    """Raises an error if a model-parallel mesh splits no variable."""
    if not isinstance(distribution, keras.distribution.ModelParallel):
        return
    splits = distribution.device_mesh.devices.size
    splits //= distribution.num_model_replicas
    if splits > 1 and not any(devices.is_split(v) for v in variables):
        raise ValueError(
            "The layout map must match at least one variable of the policy: "
            "compare its keys with `[v.path for v in policy.variables]`, or "
            "use `keras_bond.distribution.ModelParallel`, which knows Gemma. "
            f"Received: {len(variables)} variables, all of them whole on each "
            f"of {splits} devices, the first {variables[0].path!r}"
        )
