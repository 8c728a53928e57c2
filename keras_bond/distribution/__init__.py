"""One policy on many devices, on the JAX backend."""

from keras_bond.distribution.model_parallel import ModelParallel

__all__ = ["ModelParallel"]
