"""How good a policy is: win rates, effective N, Best-of-N frontiers, plots."""

from keras_bond.evaluation.bootstrap import Estimate
from keras_bond.evaluation.comparison import Comparison
from keras_bond.evaluation.comparison import paired_bootstrap
from keras_bond.evaluation.comparison import win_rate
from keras_bond.evaluation.curves import plot_run
from keras_bond.evaluation.frontier import best_of_n_frontier
from keras_bond.evaluation.frontier import excess_kl
from keras_bond.evaluation.interpolation import WeightFront
from keras_bond.evaluation.interpolation import weight_front
from keras_bond.evaluation.log_quantile import effective_n
from keras_bond.evaluation.plots import plot_best_of_n
from keras_bond.evaluation.plots import plot_weight_front

__all__ = [
    "Comparison",
    "Estimate",
    "WeightFront",
    "best_of_n_frontier",
    "effective_n",
    "excess_kl",
    "paired_bootstrap",
    "plot_best_of_n",
    "plot_run",
    "plot_weight_front",
    "weight_front",
    "win_rate",
]
