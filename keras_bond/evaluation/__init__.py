"""How good a policy has become."""

from keras_bond.evaluation.bootstrap import Estimate
from keras_bond.evaluation.comparison import Comparison
from keras_bond.evaluation.comparison import paired_bootstrap
from keras_bond.evaluation.comparison import win_rate
from keras_bond.evaluation.effective_n import effective_n
from keras_bond.evaluation.frontier import best_of_n_frontier
from keras_bond.evaluation.frontier import excess_kl
from keras_bond.evaluation.kl_efficiency import KLEfficiency
from keras_bond.evaluation.kl_efficiency import kl_efficiency
from keras_bond.evaluation.plots import plot_best_of_n

__all__ = [
    "Comparison",
    "Estimate",
    "KLEfficiency",
    "best_of_n_frontier",
    "effective_n",
    "excess_kl",
    "kl_efficiency",
    "paired_bootstrap",
    "plot_best_of_n",
    "win_rate",
]
