"""Memory of a training step, estimated before it runs."""

from keras_bond.planning.entries import Entry
from keras_bond.planning.planner import plan
from keras_bond.planning.report import Plan

__all__ = ["Entry", "Plan", "plan"]
