"""From prompts to completions: layout, random numbers, decoding."""

from keras_bond.rollouts.decoder import Decoder
from keras_bond.rollouts.network import completion_log_probs
from keras_bond.rollouts.network import completion_logits
from keras_bond.rollouts.random_numbers import uniform

__all__ = ["Decoder", "completion_log_probs", "completion_logits", "uniform"]
