"""Model parallelism for Gemma, on the JAX backend."""

from keras_bond.distribution.model_parallel import ModelParallel

__all__ = ["ModelParallel"]
