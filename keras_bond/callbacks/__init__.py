"""Keras callbacks: anchor rules, held-out measurements, and views of a run."""

from keras_bond.callbacks.anchor import AnchorEMA
from keras_bond.callbacks.anchor import AnchorFixed
from keras_bond.callbacks.anchor import AnchorRefresh
from keras_bond.callbacks.held_out import HeldOut
from keras_bond.callbacks.progress_bar import ProgressBar
from keras_bond.callbacks.stop_at import StopAt
from keras_bond.callbacks.tensorboard import TensorBoard

__all__ = [
    "AnchorEMA",
    "AnchorFixed",
    "AnchorRefresh",
    "HeldOut",
    "ProgressBar",
    "StopAt",
    "TensorBoard",
]
