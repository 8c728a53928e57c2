"""Rewards: how completions are scored."""

from keras_bond.rewards.answers import ExactAnswer
from keras_bond.rewards.answers import NumberAnswer
from keras_bond.rewards.answers import RegexAnswer
from keras_bond.rewards.cached import Cached
from keras_bond.rewards.classifier import Classifier
from keras_bond.rewards.concurrent import ConcurrentReward
from keras_bond.rewards.ranks import RankFusion
from keras_bond.rewards.ranks import UnfinishedLast
from keras_bond.rewards.reward import ModelReward
from keras_bond.rewards.reward import Reward
from keras_bond.rewards.reward import get
from keras_bond.rewards.samples import Samples
from keras_bond.rewards.shapes import Length
from keras_bond.rewards.shapes import OverlongPenalty
from keras_bond.rewards.shapes import Repetition
from keras_bond.rewards.shapes import SlotCoverage
from keras_bond.rewards.text import TextReward

__all__ = [
    "Cached",
    "Classifier",
    "ConcurrentReward",
    "ExactAnswer",
    "Length",
    "ModelReward",
    "NumberAnswer",
    "OverlongPenalty",
    "RankFusion",
    "RegexAnswer",
    "Repetition",
    "Reward",
    "Samples",
    "SlotCoverage",
    "TextReward",
    "UnfinishedLast",
    "get",
]
