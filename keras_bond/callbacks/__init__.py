"""Keras callbacks: how the anchor follows the policy."""

from keras_bond.callbacks.anchor import AnchorEMA
from keras_bond.callbacks.anchor import AnchorFixed
from keras_bond.callbacks.anchor import AnchorRefresh
from keras_bond.callbacks.anchor import AnchorRule

__all__ = ["AnchorEMA", "AnchorFixed", "AnchorRefresh", "AnchorRule"]
