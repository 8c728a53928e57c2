"""Keras models that train a policy."""

from keras_bond.training.jbond import JBond

__all__ = ["JBond"]
