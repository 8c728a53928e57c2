"""Keras callbacks: anchor rules, held-out measurements and a progress bar."""

from keras_bond.callbacks.anchor import AnchorEMA
from keras_bond.callbacks.anchor import AnchorFixed
from keras_bond.callbacks.anchor import AnchorRefresh
from keras_bond.callbacks.held_out import HeldOut
from keras_bond.callbacks.progress_bar import ProgressBar

__all__ = [
    "AnchorEMA",
    "AnchorFixed",
    "AnchorRefresh",
    "HeldOut",
    "ProgressBar",
]
