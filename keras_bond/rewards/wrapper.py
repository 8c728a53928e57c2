"""A reward around another."""

import keras

from keras_bond.rewards.reward import Reward
from keras_bond.rewards.reward import get


class Wrapper(Reward):
    """Passes on what it does not change; a child writes `score`.

    Args:
        reward: what `keras_bond.rewards.get` takes.
    """

    def __init__(self, reward):
        self.reward = get(reward)
        self.name = self.reward.name
        self.needs_text = self.reward.needs_text
        self.compares = self.reward.compares

    def variables(self):
        return self.reward.variables()

    def get_config(self):
        origin = self.reward.origin
        return {"reward": keras.saving.serialize_keras_object(origin)}

    @classmethod
    def from_config(cls, config):
        reward = keras.saving.deserialize_keras_object(config["reward"])
        return cls(**{**config, "reward": reward})
