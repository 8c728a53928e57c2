"""Keras callbacks: how the anchor follows the policy, and what it answers."""

from keras_bond.callbacks.anchor import AnchorEMA
from keras_bond.callbacks.anchor import AnchorFixed
from keras_bond.callbacks.anchor import AnchorRefresh
from keras_bond.callbacks.anchor import AnchorRule
from keras_bond.callbacks.completions_log import CompletionsLog

__all__ = [
    "AnchorEMA",
    "AnchorFixed",
    "AnchorRefresh",
    "AnchorRule",
    "CompletionsLog",
]
