"""Keras callbacks: how the anchor follows the policy, and what comes of it."""

from keras_bond.callbacks.anchor import AnchorEMA
from keras_bond.callbacks.anchor import AnchorFixed
from keras_bond.callbacks.anchor import AnchorRefresh
from keras_bond.callbacks.anchor import AnchorRule
from keras_bond.callbacks.best_of_n_report import BestOfNReport
from keras_bond.callbacks.completions_log import CompletionsLog
from keras_bond.callbacks.progress_bar import ProgressBar
from keras_bond.callbacks.reward_overoptimisation import RewardOveroptimisation

__all__ = [
    "AnchorEMA",
    "AnchorFixed",
    "AnchorRefresh",
    "AnchorRule",
    "BestOfNReport",
    "CompletionsLog",
    "ProgressBar",
    "RewardOveroptimisation",
]
