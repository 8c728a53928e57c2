"""Where a trainer's variables must live, on one device or many."""

import contextlib

import keras

from keras_bond import backend
from keras_bond.backend import devices


def check_placement(policy):
    """Refuses a policy that lives elsewhere than the trainer would.

    Raises:
        ValueError: if something distributes the training that keras_bond
            cannot follow, or if the policy was built under another
            distribution than is set now.
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
    """Refuses a Keras model as reward where several processes train.

    Raises:
        ValueError: naming the reward.
    """
    if devices.num_processes() > 1 and scorer.variables():
        raise ValueError(
            "Where several processes train together each scores its own rows, "
            "which a Keras model spread over all of them cannot: let a "
            "function score the completions, or train in one process. "
            f"Received: reward=`{scorer.name}`, {devices.num_processes()} "
            "processes"
        )


def _check_distributor():
    strategy = backend.foreign_strategy()
    if strategy is not None:
        raise ValueError(
            "Training on several devices goes through `keras.distribution` "
            "and needs the JAX backend: a step with sampling and rewards on "
            "the host does not run inside a strategy of the backend. Received: "
            f"{strategy}, the {backend.name} backend"
        )
    distribution = keras.distribution.distribution()
    if distribution is None:
        return
    if backend.name != "jax":
        raise ValueError(
            "Keras distributes training on the JAX backend only: set "
            'KERAS_BACKEND="jax", or call '
            "`keras.distribution.set_distribution(None)`. Received: a "
            f"{type(distribution).__name__}, the {backend.name} backend"
        )


@contextlib.contextmanager
def sharing_batches(batches):
    """A context in which every process takes its own rows of each batch.

    Keras would share out a `tf.data.Dataset` only; these batches share
    themselves out.

    Args:
        batches: a `PromptBatches` or `PromptStream`.

    Raises:
        ValueError: if the processes were not given the same prompts.
    """
    distribution = keras.distribution.distribution()
    if distribution is None or devices.num_processes() == 1:
        yield
        return
    if not devices.is_same_everywhere(batches.fingerprint()):
        raise ValueError(
            "Every process must be given all prompts, in the same order, and "
            "takes its own rows of each batch. Received: other prompts in "
            f"process {devices.process_index()} than elsewhere"
        )
    asked = distribution.auto_shard_dataset
    distribution.auto_shard_dataset = False
    try:
        yield
    finally:
        distribution.auto_shard_dataset = asked


def _check_split(distribution, variables):
    """Refuses a mesh for split variables when none is split."""
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
