"""How good a policy has become."""

from keras_bond.evaluation.frontier import best_of_n_frontier
from keras_bond.evaluation.frontier import win_rate

__all__ = ["best_of_n_frontier", "win_rate"]
