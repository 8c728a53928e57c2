"""Keras models that train a policy."""

from keras_bond.training.baselines import BoNBoN
from keras_bond.training.baselines import Reinforce
from keras_bond.training.bond import Bond
from keras_bond.training.jbond import JBond
from keras_bond.training.quantile_model import QuantileModel
from keras_bond.training.reward_model import RewardModel

__all__ = [
    "BoNBoN",
    "Bond",
    "JBond",
    "QuantileModel",
    "Reinforce",
    "RewardModel",
]
