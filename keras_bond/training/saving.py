"""Saving and loading of trainers, LoRA adapters included.

Keras merges LoRA adapters into their kernels when it saves a layer, and
creates new adapters when it loads one. That is right for a finished model but
not for a run that continues, because the states of optimizer and anchor belong
to the adapters.
"""

import warnings

import keras

from keras_bond.training import round_trip
from keras_bond.training.whole_files import WholeFiles
from keras_bond.training.whole_files import lora_layers


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


class Saving(WholeFiles):
    """Mixin for `keras.Model` that saves trainers, LoRA adapters included.

    It uses `policy`, `reward`, `progress`, and the attributes named in
    `get_config`.
    """

    def network_with_adapters(self):
        return self.policy

    def models_in_file(self):
        # Keras finds them in the attribute `reward`.
        rewards = self.reward
        if not isinstance(rewards, (list, tuple)):
            rewards = [rewards]
        return [self, *[r for r in rewards if isinstance(r, keras.Layer)]]

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        is_loaded = self.progress.is_loaded
        try:
            super().load_weights(filepath, skip_mismatch, **kwargs)
        except BaseException:
            self.progress.is_loaded = is_loaded
            raise

    load_weights.__doc__ = WholeFiles.load_weights.__doc__

    def __reduce__(self):
        # A file cannot hold every reward, but a copy has it anyway.
        return (
            _with_reward,
            (*super().__reduce__(), self.reward, self.progress.is_loaded),
        )

    def set_state_tree(self, state_tree):
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
            "chat_template": serialize_template(self.chat_template),
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
        config["chat_template"] = keras.saving.deserialize_keras_object(
            config["chat_template"]
        )
        trainer = cls(policy, reward, **config)
        trainer.lacks_weights = True
        return trainer


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
        "policy": round_trip.serialize(policy),
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


def serialize_template(chat_template):
    """Returns the config of a chat template.

    Raises:
        ValueError: if it is a function that could not be loaded again.
    """
    if not callable(chat_template):
        return chat_template
    is_function = hasattr(chat_template, "__name__")
    kind = chat_template if is_function else type(chat_template)
    name = keras.saving.get_registered_name(kind)
    if keras.saving.get_registered_object(name) is not kind:
        raise ValueError(
            "A `chat_template` that is a function must be registered to be "
            "saved: decorate it with `@keras.saving."
            'register_keras_serializable(package="my_package")`, and import '
            f"it before loading. Received: chat_template={chat_template!r}"
        )
    return keras.saving.serialize_keras_object(chat_template)


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


def _with_reward(load, arguments, reward, is_loaded):
    """A copy of a trainer, see `Saving.__reduce__`."""
    with warnings.catch_warnings():
        # Those of rewards that the file does not hold.
        warnings.filterwarnings("ignore", "(The|A `Cached`) reward")
        trainer = load(*arguments)
    trainer.reward = reward
    trainer.progress.is_loaded = is_loaded
    return trainer


def reward_not_loaded(prompts, completions):
    """Placeholder for a reward that could not be loaded; raises an error."""
    raise ValueError(
        "This model was loaded without its reward: set "
        "`bond.reward = my_reward`. Received: "
        f"{len(prompts)} prompts with {len(completions)} completions to score"
    )
