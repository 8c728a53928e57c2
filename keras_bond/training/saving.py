"""Saving a policy with LoRA adapters exactly as it is.

Keras merges LoRA adapters into their kernel when it saves a layer, and starts
new adapters when it loads one. That is right for a finished model and wrong
for a run that goes on: optimizer and anchor belong to the adapters.
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
    """Makes the layers save their bare kernels while the context lasts."""
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
    """A context that says whether this process writes; all leave it together.

    Raises:
        ValueError: if no process has all of the weights.
    """
    if devices.num_processes() == 1:
        yield True
        return
    # What Keras would do first, and all processes must do together.
    model.jax_state_sync()
    split = [v.path for v in model.variables if not devices.is_here(v)]
    if split:
        raise ValueError(
            "Weights that are split over several processes cannot be written "
            "by one of them: use a mesh whose second axis stays within a "
            "process, or `keras.callbacks.OrbaxCheckpoint`. Received: "
            f"{len(split)} such variables, the first {split[0]!r}"
        )
    distribution = keras.distribution.distribution()
    # While it writes Keras makes some variables to compare with, which one
    # process cannot spread over all.
    keras.distribution.set_distribution(None)
    try:
        yield devices.process_index() == 0
    finally:
        keras.distribution.set_distribution(distribution)
        devices.wait_for_all("saved")


@contextlib.contextmanager
def beside(filepath, overwrite):
    """Yields a path that Keras can write to, see `files.atomic_file`.

    Args:
        filepath: str or path. A remote one, several files or a question to the
            user are left to Keras.
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
    """A context in which a model is written, adapters apart from kernels.

    Args:
        model: the `keras.Model`.
        network: the part of it that may have LoRA adapters.
        filepath, overwrite: see `beside`.

    Yields:
        the path to write to, or `None` where another process writes.
    """
    with unmerged(network), by_one_process(model) as is_mine:
        if not is_mine:
            yield None
            return
        with beside(filepath, overwrite) as path:
            yield path


@contextlib.contextmanager
def all_or_nothing(model):
    """Gives a model its values back where the context ends in an error."""
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
    """Says which file could not be loaded, where a context ends in an error.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or that of another model.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            "The file must be whole and hold the weights of a model that is "
            "built and compiled alike: the same classes, policy, LoRA rank and "
            f"optimizer. Nothing was changed. Received: {filepath}, "
            f"{type(error).__name__}: {error}"
        ) from error


def _kept(variable):
    """The value of a variable, which a later assignment does not change."""
    if keras.config.backend() == "jax":
        return variable.value
    return np.array(ops.convert_to_numpy(variable))


class CompileConfig:
    """A mix-in before `keras.Model` for models with losses of their own.

    It keeps in the saved model what `compile` was called with. A child keeps
    the arguments of its `compile`, except for the optimizer, in
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


class Saving:
    """A mix-in before `keras.Model`: a trainer in a file, adapters included.

    It reads `policy`, `progress`, and the attributes that `get_config` names.
    """

    def save(self, filepath, overwrite=True, **kwargs):
        """See `keras.Model.save`. LoRA adapters stay apart from kernels.

        Of several processes the first writes, and the others wait.
        """
        with writing(self, self.policy, filepath, overwrite) as path:
            if path is not None:
                super().save(path, overwrite=overwrite, **kwargs)

    def save_weights(self, filepath, overwrite=True, **kwargs):
        """See `keras.Model.save_weights`: policy, anchor, optimizer, seeds.

        Of several processes the first writes, and the others wait.
        """
        with writing(self, self.policy, filepath, overwrite) as path:
            if path is not None:
                super().save_weights(path, overwrite=overwrite, **kwargs)

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        """See `keras.Model.load_weights`. Loads all, or changes nothing.

        Raises:
            ValueError: if the file is damaged, or that of another model.
        """
        with all_or_nothing(self), naming(filepath):
            super().load_weights(filepath, skip_mismatch, **kwargs)

    def set_state_tree(self, state_tree):
        """See `keras.Model.set_state_tree`, by which Orbax restores."""
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
    """Saves and loads the adapters of a policy beside their bare kernels.

    Must be an attribute whose name begins with an underscore: Keras loads
    those last, after the layers themselves have reset their adapters.

    Args:
        policy: a `keras_hub.models.CausalLM`.
    """

    def __init__(self, policy):
        super().__init__(name="lora_adapters")
        # A function, so that Keras does not track the layers a second time.
        self._lora_layers = lambda: lora_layers(policy)
        self.built = True

    def save_own_variables(self, store):
        for i, layer in enumerate(self._lora_layers()):
            if layer.lora_enabled:
                raise ValueError(
                    "A policy with LoRA adapters must be saved by the model's "
                    "own `save` or `save_weights`, which keep the adapters "
                    "apart from their kernels. Received: a save that would "
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
    """Returns the config of a policy, LoRA included."""
    return {
        "policy": keras.saving.serialize_keras_object(policy),
        **serialize_lora(policy.backbone),
    }


def deserialize_policy(config):
    """Builds the policy that `serialize_policy` described.

    The three entries are taken out of `config`.
    """
    # KerasHub compiles a policy when it is made, and Keras, which would do it
    # again, only warns that it cannot.
    policy = {**config.pop("policy"), "compile_config": None}
    policy = keras.saving.deserialize_keras_object(policy)
    enable_lora(policy.backbone, config)
    return policy


def serialize_lora(backbone):
    """Returns what of a config makes the adapters of a KerasHub backbone."""
    return {
        "lora_rank": getattr(backbone, "_lora_rank", None),
        "lora_layer_names": sorted({x.name for x in lora_layers(backbone)}),
    }


def enable_lora(backbone, config):
    """Makes the adapters that `serialize_lora` described.

    The two entries are taken out of `config`.
    """
    rank = config.pop("lora_rank")
    layer_names = config.pop("lora_layer_names")
    if rank is not None:
        backbone.enable_lora(rank, target_layer_names=layer_names)


def serialize_reward(reward):
    """Returns the config of a reward, or `None` if it cannot be told."""
    try:
        if isinstance(reward, (list, tuple)):
            return [serialize_reward(part) for part in reward]
        if getattr(reward, "__name__", None) == "<lambda>":
            return None
        return keras.saving.serialize_keras_object(reward)
    except (TypeError, ValueError, AttributeError):
        return None


def deserialize_reward(config):
    """Finds the reward again, or leaves it to the user and says so."""
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
    """Stands where a reward could not be loaded, and says so when called."""
    raise ValueError(
        "This model was loaded without its reward: set "
        "`bond.reward = my_reward`. Received: "
        f"{len(prompts)} prompts with {len(completions)} completions to score"
    )
