"""Saving and loading of trainers, LoRA adapters included.

Keras merges LoRA adapters into their kernels when it saves a layer, and
creates new adapters when it loads one. That is right for a finished model but
not for a run that continues, because the states of optimizer and anchor belong
to the adapters.
"""

import contextlib
import pathlib
import warnings

import keras
import numpy as np
from keras import ops

from keras_bond import files
from keras_bond.backend import devices


def lora_layers(policy):
    """Returns the policy's layers that have LoRA adapters, in order."""
    layers = policy._flatten_layers()
    return [layer for layer in layers if hasattr(layer, "lora_kernel_a")]


@contextlib.contextmanager
def unmerged(policy):
    """Returns a context in which layers save kernels without adapters."""
    layers = [layer for layer in lora_layers(policy) if layer.lora_enabled]
    for layer in layers:
        layer.lora_enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.lora_enabled = True


@contextlib.contextmanager
def by_one_process(model):
    """Returns a context that only one process writes in.

    Yields whether this process is the one. All processes wait for each other at
    the end of the context.

    Raises:
        ValueError: if no process holds all of the weights.
    """
    if devices.num_processes() == 1:
        yield True
        return
    # Keras does this first when it saves, which only one process does below;
    # all processes have to do it together.
    model.jax_state_sync()
    split = [v.path for v in model.variables if not devices.is_here(v)]
    if split:
        raise ValueError(
            "Weights that are sharded over several processes cannot be written "
            "by one of them: use a mesh whose second axis stays within a "
            "process, or `keras.callbacks.OrbaxCheckpoint`. Received: "
            f"{len(split)} such variables, the first {split[0]!r}"
        )
    distribution = keras.distribution.distribution()
    # To save, Keras creates variables for comparison, which a single process
    # cannot shard over all processes.
    keras.distribution.set_distribution(None)
    try:
        yield devices.process_index() == 0
    finally:
        keras.distribution.set_distribution(distribution)
        devices.wait_for_all("saved")


@contextlib.contextmanager
def atomic_path(filepath, overwrite):
    """Returns a context in which Keras writes a file atomically.

    Yields the path to write to, see `files.atomic_file`. For remote files,
    sharded files and files that must not be overwritten, this is `filepath`
    itself.

    Args:
        filepath: str or path.
        overwrite: bool. See `keras.Model.save`.
    """
    path = pathlib.Path(filepath)
    is_one_file = path.name.endswith((".weights.h5", ".keras"))
    is_here = is_one_file and "://" not in str(filepath)
    if not is_here or (path.exists() and not overwrite):
        yield filepath
        return
    with files.atomic_file(path) as unfinished:
        yield unfinished


@contextlib.contextmanager
def writing(model, network, filepath, overwrite):
    """Returns a context in which a model is saved with unmerged adapters.

    Args:
        model: the `keras.Model`.
        network: the part of the model that may have LoRA adapters.
        filepath, overwrite: see `atomic_path`.

    Yields:
        the path to write to, or `None` if another process writes.
    """
    with unmerged(network), by_one_process(model) as is_writer:
        if not is_writer:
            yield None
            return
        with atomic_path(filepath, overwrite) as path:
            yield path


@contextlib.contextmanager
def all_or_nothing(model):
    """Returns a context that restores a model's values after an error."""
    variables = list(model.variables)
    if model.optimizer is not None:
        variables += model.optimizer.variables
    values = [_kept(variable) for variable in variables]
    try:
        yield
    except BaseException:
        for variable, value in zip(variables, values):
            variable.assign(value)
        model.progress.is_loaded = False
        raise


@contextlib.contextmanager
def naming(filepath):
    """Returns a context whose loading errors name the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or belongs to a different model.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            "The file must be complete and hold the weights of a model that "
            "is built and compiled in the same way: the same classes, policy, "
            "LoRA rank and optimizer. Nothing was changed. Received: "
            f"{filepath}, "
            f"{type(error).__name__}: {error}"
        ) from error


def _kept(variable):
    """The value of a variable, unaffected by later assignments."""
    if keras.config.backend() == "jax":
        return variable.value
    return np.array(ops.convert_to_numpy(variable))


class CompileConfig:
    """Mixin for `keras.Model` that saves the arguments of `compile`.

    It is for models with a built-in loss. A subclass stores the arguments of
    its `compile`, except for the optimizer, in `_compile_arguments`.
    """

    def get_compile_config(self):
        if not self.compiled:
            return {}
        optimizer = keras.saving.serialize_keras_object(self.optimizer)
        return {"optimizer": optimizer, **self._compile_arguments}

    def compile_from_config(self, config):
        optimizer = keras.saving.deserialize_keras_object(config["optimizer"])
        self.compile(**{**config, "optimizer": optimizer})


class Saving:
    """Mixin for `keras.Model` that saves trainers, LoRA adapters included.

    It uses `policy`, `progress`, and the attributes named in `get_config`.
    """

    def save(self, filepath, overwrite=True, **kwargs):
        """See `keras.Model.save`. LoRA adapters are not merged.

        If there are several processes, the first one writes and the others
        wait.
        """
        with writing(self, self.policy, filepath, overwrite) as path:
            if path is not None:
                super().save(path, overwrite=overwrite, **kwargs)

    def save_weights(self, filepath, overwrite=True, **kwargs):
        """Saves the weights of policy, anchor, optimizer and counters.

        See `keras.Model.save_weights`. If there are several processes, the
        first one writes and the others wait.
        """
        with writing(self, self.policy, filepath, overwrite) as path:
            if path is not None:
                super().save_weights(path, overwrite=overwrite, **kwargs)

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        """See `keras.Model.load_weights`. If it fails, nothing is changed.

        Raises:
            ValueError: if the file is damaged or belongs to a different model.
        """
        with all_or_nothing(self), naming(filepath):
            super().load_weights(filepath, skip_mismatch, **kwargs)

    def set_state_tree(self, state_tree):
        """See `keras.Model.set_state_tree`, which Orbax restores with."""
        super().set_state_tree(state_tree)
        self.progress.is_loaded = True

    def get_config(self):
        return {
            **serialize_policy(self.policy),
            "reward": serialize_reward(self.reward),
            "reward_weights": self.reward_weights,
            "max_prompt_length": self.max_prompt_length,
            "max_completion_length": self.max_completion_length,
            "prompt_buckets": list(self.prompt_buckets),
            "truncate": self.truncate,
            "stop_token_ids": list(self.stop_token_ids),
            "temperature": self.temperature,
            "seed": self.seed,
            "reference": self.weight_sets.reference is not None,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        reward = deserialize_reward(config.pop("reward"))
        policy = deserialize_policy(config)
        return cls(policy, reward, **config)


class LoraAdapters(keras.Layer):
    """Saves and loads the adapters of a policy separately from its kernels.

    The attribute that holds it must have a name that begins with an underscore:
    Keras loads attributes in alphabetical order, those with an underscore
    last, and the layers of the policy reset their adapters when they load.

    Args:
        policy: a `keras_hub.models.CausalLM`.
    """

    def __init__(self, policy):
        super().__init__(name="lora_adapters")
        # A function hides the layers from Keras, which would track them twice.
        self._lora_layers = lambda: lora_layers(policy)
        self.built = True

    def save_own_variables(self, store):
        for i, layer in enumerate(self._lora_layers()):
            if layer.lora_enabled:
                raise ValueError(
                    "A policy with LoRA adapters must be saved by the model's "
                    "own `save` or `save_weights`, which do not merge the "
                    "adapters into their kernels. Received: a save that would "
                    "merge them"
                )
            store[f"{i}_a"] = layer.lora_kernel_a
            store[f"{i}_b"] = layer.lora_kernel_b

    def load_own_variables(self, store):
        layers = self._lora_layers()
        if len(store.keys()) != 2 * len(layers):
            raise ValueError(
                "The file must hold the LoRA adapters of the same layers as "
                "the policy: call `policy.backbone.enable_lora(rank)` as for "
                f"the saved model. Received: {len(store.keys()) // 2} layers "
                f"with adapters in the file, {len(layers)} in the policy"
            )
        for i, layer in enumerate(layers):
            layer.lora_kernel_a.assign(store[f"{i}_a"])
            layer.lora_kernel_b.assign(store[f"{i}_b"])


def serialize_policy(policy):
    """Returns the config of a policy, including LoRA."""
    return {
        "policy": keras.saving.serialize_keras_object(policy),
        **serialize_lora(policy.backbone),
    }


def deserialize_policy(config):
    """Builds the policy that `serialize_policy` described.

    Removes its three entries from `config`.
    """
    # KerasHub compiles a policy when it is built. Keras would try to compile it
    # again, and warn that it cannot.
    policy = {**config.pop("policy"), "compile_config": None}
    policy = keras.saving.deserialize_keras_object(policy)
    enable_lora(policy.backbone, config)
    return policy


def serialize_lora(backbone):
    """Returns the config of the LoRA adapters of a KerasHub backbone."""
    return {
        "lora_rank": getattr(backbone, "_lora_rank", None),
        "lora_layer_names": sorted({x.name for x in lora_layers(backbone)}),
    }


def enable_lora(backbone, config):
    """Creates the adapters that `serialize_lora` described.

    Removes its two entries from `config`.
    """
    rank = config.pop("lora_rank")
    layer_names = config.pop("lora_layer_names")
    if rank is not None:
        backbone.enable_lora(rank, target_layer_names=layer_names)


def serialize_reward(reward):
    """Returns the config of a reward, `None` if it cannot be serialized."""
    try:
        if isinstance(reward, (list, tuple)):
            return [serialize_reward(part) for part in reward]
        if getattr(reward, "__name__", None) == "<lambda>":
            return None
        return keras.saving.serialize_keras_object(reward)
    except (TypeError, ValueError, AttributeError):
        return None


def deserialize_reward(config):
    """Returns the reward of a config, or warns if it cannot be loaded."""
    try:
        if isinstance(config, list):
            return [deserialize_reward(part) for part in config]
        if config is not None:
            return keras.saving.deserialize_keras_object(config)
    except (TypeError, ValueError, AttributeError):
        pass
    warnings.warn(
        "The reward could not be loaded. Before `fit` or `evaluate`, set "
        "`bond.reward = my_reward`, or load with "
        '`custom_objects={"my_reward": my_reward}`.',
        stacklevel=2,
    )
    return reward_not_loaded


def reward_not_loaded(prompts, completions):
    """Placeholder for a reward that could not be loaded; raises an error."""
    raise ValueError(
        "This model was loaded without its reward: set "
        "`bond.reward = my_reward`. Received: "
        f"{len(prompts)} prompts with {len(completions)} completions to score"
    )
