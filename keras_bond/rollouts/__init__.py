"""Sampling of completions, and their log-probabilities."""

from keras_bond.rollouts.decoder import Decoder
from keras_bond.rollouts.network import Head
from keras_bond.rollouts.reader import Reader
from keras_bond.rollouts.reader import completion_hidden
from keras_bond.rollouts.reader import completion_log_probs
from keras_bond.rollouts.rollout import Rollout
from keras_bond.rollouts.rollout import uniform

__all__ = [
    "Decoder",
    "Head",
    "Reader",
    "Rollout",
    "completion_hidden",
    "completion_log_probs",
    "uniform",
]
