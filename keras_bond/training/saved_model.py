"""A staged model that is saved and loaded whole, adapters included."""

from keras_bond.training import saving
from keras_bond.training.staged_model import StagedModel


class SavedModel(StagedModel):
    """Says how a trainer of a policy gets into a file and out of it.

    A child has the attributes that `get_config` names, and `progress`.
    """

    def save(self, filepath, overwrite=True, **kwargs):
        """See `keras.Model.save`. LoRA adapters stay apart from kernels.

        Of several processes the first writes, and the others wait.
        """
        with saving.writing(self, self.policy, filepath, overwrite) as path:
            if path is not None:
                super().save(path, overwrite=overwrite, **kwargs)

    def save_weights(self, filepath, overwrite=True, **kwargs):
        """See `keras.Model.save_weights`: policy, anchor, optimizer, seeds.

        Of several processes the first writes, and the others wait.
        """
        with saving.writing(self, self.policy, filepath, overwrite) as path:
            if path is not None:
                super().save_weights(path, overwrite=overwrite, **kwargs)

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        """See `keras.Model.load_weights`. Loads all, or changes nothing.

        Raises:
            ValueError: if the file is damaged, or that of another model.
        """
        with saving.all_or_nothing(self), saving.naming(filepath):
            super().load_weights(filepath, skip_mismatch, **kwargs)

    def set_state_tree(self, state_tree):
        """See `keras.Model.set_state_tree`, by which Orbax restores."""
        super().set_state_tree(state_tree)
        self.progress.is_loaded = True

    def get_config(self):
        return {
            **saving.serialize_policy(self.policy),
            "reward": saving.serialize_reward(self.reward),
            "reward_weights": self.reward_weights,
            "max_prompt_length": self.max_prompt_length,
            "max_completion_length": self.max_completion_length,
            "prompt_buckets": list(self.prompt_buckets),
            "truncate": self.truncate,
            "stop_token_ids": list(self.stop_token_ids),
            "temperature": self.temperature,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        reward = saving.deserialize_reward(config.pop("reward"))
        policy = saving.deserialize_policy(config)
        return cls(policy, reward, **config)
