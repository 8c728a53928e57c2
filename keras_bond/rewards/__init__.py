"""What a reward is."""

from keras_bond.rewards.concurrent import ConcurrentReward
from keras_bond.rewards.reward import FunctionReward
from keras_bond.rewards.reward import ModelReward
from keras_bond.rewards.reward import Reward
from keras_bond.rewards.reward import WeightedRewards
from keras_bond.rewards.reward import get
from keras_bond.rewards.samples import Samples

__all__ = [
    "ConcurrentReward",
    "FunctionReward",
    "ModelReward",
    "Reward",
    "Samples",
    "WeightedRewards",
    "get",
]
