"""From prompts to completions: layout, random numbers, decoding."""

from keras_bond.rollouts.decoder import Decoder
from keras_bond.rollouts.head import Head
from keras_bond.rollouts.network import completion_hidden
from keras_bond.rollouts.network import completion_log_probs
from keras_bond.rollouts.random_numbers import uniform

__all__ = [
    "Decoder",
    "Head",
    "completion_hidden",
    "completion_log_probs",
    "uniform",
]
