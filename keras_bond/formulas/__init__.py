"""Pure tensor maths with the paper's equation numbers. `keras.ops` only."""

from keras_bond.formulas.averages import BASELINES
from keras_bond.formulas.averages import baseline
from keras_bond.formulas.averages import leave_one_out_mean
from keras_bond.formulas.averages import masked_mean
from keras_bond.formulas.best_of_n import best_of_n_kl
from keras_bond.formulas.best_of_n import best_of_n_weights
from keras_bond.formulas.best_of_n import best_of_n_win_rate
from keras_bond.formulas.divergences import full_vocabulary_kl_loss
from keras_bond.formulas.divergences import jeffreys_divergence
from keras_bond.formulas.divergences import kl_divergence
from keras_bond.formulas.divergences import token_kls
from keras_bond.formulas.forward import best_sample_weights
from keras_bond.formulas.forward import control_variate_coefficients
from keras_bond.formulas.forward import control_variate_scale
from keras_bond.formulas.forward import importance_ratios
from keras_bond.formulas.jbond import backward_returns
from keras_bond.formulas.jbond import best_sample
from keras_bond.formulas.jbond import is_penalized
from keras_bond.formulas.jbond import jbond_reward
from keras_bond.formulas.law import best_of_n_law
from keras_bond.formulas.law import bond_reward
from keras_bond.formulas.law import log_best_of_n_ratio
from keras_bond.formulas.law import quantiles
from keras_bond.formulas.log_probs import sequence_log_probs
from keras_bond.formulas.log_probs import token_entropies
from keras_bond.formulas.log_probs import token_log_probs
from keras_bond.formulas.losses import score_function_kl_loss
from keras_bond.formulas.losses import weighted_likelihood_loss
from keras_bond.formulas.masks import completion_mask
from keras_bond.formulas.masks import is_any_of
from keras_bond.formulas.masks import is_terminated
from keras_bond.formulas.pooled import policy_weights
from keras_bond.formulas.pooled import pooled_backward_coefficients
from keras_bond.formulas.pooled import pooled_forward_coefficients
from keras_bond.formulas.pooled import pooled_returns
from keras_bond.formulas.preferences import preference_loss
from keras_bond.formulas.quantile_labels import quantile_labels
from keras_bond.formulas.quantile_labels import quantile_loss
from keras_bond.formulas.quantile_tables import count_beaten
from keras_bond.formulas.quantile_tables import harmonic_number
from keras_bond.formulas.quantile_tables import harmonic_table
from keras_bond.formulas.quantile_tables import look_up
from keras_bond.formulas.quantile_tables import monte_carlo_table
from keras_bond.formulas.quantile_tables import pairs_table
from keras_bond.formulas.quantile_tables import tie_table
from keras_bond.formulas.rivals import bonbon_contrast_coefficients
from keras_bond.formulas.rivals import bonbon_margin
from keras_bond.formulas.rivals import reinforce_returns

__all__ = [
    "BASELINES",
    "backward_returns",
    "baseline",
    "best_of_n_kl",
    "best_of_n_law",
    "best_of_n_weights",
    "best_of_n_win_rate",
    "best_sample",
    "best_sample_weights",
    "bonbon_contrast_coefficients",
    "bonbon_margin",
    "bond_reward",
    "completion_mask",
    "control_variate_coefficients",
    "control_variate_scale",
    "count_beaten",
    "full_vocabulary_kl_loss",
    "harmonic_number",
    "harmonic_table",
    "importance_ratios",
    "is_any_of",
    "is_penalized",
    "is_terminated",
    "jbond_reward",
    "jeffreys_divergence",
    "kl_divergence",
    "leave_one_out_mean",
    "log_best_of_n_ratio",
    "look_up",
    "masked_mean",
    "monte_carlo_table",
    "pairs_table",
    "policy_weights",
    "pooled_backward_coefficients",
    "pooled_forward_coefficients",
    "pooled_returns",
    "preference_loss",
    "quantile_labels",
    "quantile_loss",
    "quantiles",
    "reinforce_returns",
    "score_function_kl_loss",
    "sequence_log_probs",
    "tie_table",
    "token_entropies",
    "token_kls",
    "token_log_probs",
    "weighted_likelihood_loss",
]
