"""Pure tensor maths with the paper's equation numbers. `keras.ops` only."""

from keras_bond.formulas.averages import leave_one_out_mean
from keras_bond.formulas.averages import masked_mean
from keras_bond.formulas.best_of_n import best_of_n_kl
from keras_bond.formulas.best_of_n import best_of_n_weights
from keras_bond.formulas.best_of_n import best_of_n_win_rate
from keras_bond.formulas.jbond import best_sample
from keras_bond.formulas.jbond import is_penalised
from keras_bond.formulas.jbond import jbond_returns
from keras_bond.formulas.jbond import jbond_reward
from keras_bond.formulas.log_probs import sequence_log_probs
from keras_bond.formulas.log_probs import token_entropies
from keras_bond.formulas.log_probs import token_log_probs
from keras_bond.formulas.losses import forward_kl_loss
from keras_bond.formulas.losses import jeffreys_loss
from keras_bond.formulas.losses import policy_gradient_loss
from keras_bond.formulas.losses import score_function_kl_loss
from keras_bond.formulas.masks import completion_mask
from keras_bond.formulas.masks import is_any_of
from keras_bond.formulas.masks import is_terminated

__all__ = [
    "best_of_n_kl",
    "best_of_n_weights",
    "best_of_n_win_rate",
    "best_sample",
    "completion_mask",
    "forward_kl_loss",
    "is_any_of",
    "is_penalised",
    "is_terminated",
    "jbond_returns",
    "jbond_reward",
    "jeffreys_loss",
    "leave_one_out_mean",
    "masked_mean",
    "policy_gradient_loss",
    "score_function_kl_loss",
    "sequence_log_probs",
    "token_entropies",
    "token_log_probs",
]
