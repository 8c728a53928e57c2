"""The paper's equations as pure functions of tensors, with their numbers."""

from keras_bond.formulas.averages import baseline
from keras_bond.formulas.best_of_n import best_of_n_kl
from keras_bond.formulas.best_of_n import best_of_n_weights
from keras_bond.formulas.best_of_n import best_of_n_win_rate
from keras_bond.formulas.distribution import best_of_n_distribution
from keras_bond.formulas.distribution import bond_reward
from keras_bond.formulas.distribution import log_best_of_n_ratio
from keras_bond.formulas.distribution import quantiles
from keras_bond.formulas.divergences import jeffreys_divergence
from keras_bond.formulas.divergences import kl_divergence
from keras_bond.formulas.divergences import token_kls
from keras_bond.formulas.jbond import backward_returns
from keras_bond.formulas.jbond import is_penalized
from keras_bond.formulas.jbond import jbond_reward
from keras_bond.formulas.learned_quantiles import quantile_labels
from keras_bond.formulas.learned_quantiles import quantile_loss
from keras_bond.formulas.likelihood import sequence_log_probs
from keras_bond.formulas.likelihood import token_log_probs
from keras_bond.formulas.policy_gradient import score_function_kl_loss
from keras_bond.formulas.policy_gradient import weighted_likelihood_loss
from keras_bond.formulas.quantile_tables import monte_carlo_table

__all__ = [
    "backward_returns",
    "baseline",
    "best_of_n_distribution",
    "best_of_n_kl",
    "best_of_n_weights",
    "best_of_n_win_rate",
    "bond_reward",
    "is_penalized",
    "jbond_reward",
    "jeffreys_divergence",
    "kl_divergence",
    "log_best_of_n_ratio",
    "monte_carlo_table",
    "quantile_labels",
    "quantile_loss",
    "quantiles",
    "score_function_kl_loss",
    "sequence_log_probs",
    "token_kls",
    "token_log_probs",
    "weighted_likelihood_loss",
]
