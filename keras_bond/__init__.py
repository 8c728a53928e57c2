"""Best-of-N distillation for KerasHub language models, with `model.fit`."""

import sys

from keras_bond.version import __version__

# `python -m keras_bond` imports this file before it reads its arguments, and
# `--help` should not wait for Keras. Python calls itself `-m` meanwhile.
_command = " ".join([*sys.orig_argv, ""])
if sys.argv[:1] != ["-m"] or " -m keras_bond " not in _command:
    from keras_bond import callbacks
    from keras_bond import data
    from keras_bond import distribution
    from keras_bond import evaluation
    from keras_bond import export
    from keras_bond import formulas
    from keras_bond import rewards
    from keras_bond.diagnosis import doctor
    from keras_bond.hugging_face import load_hugging_face
    from keras_bond.planning import Plan
    from keras_bond.planning import plan
    from keras_bond.training import BoNBoN
    from keras_bond.training import Bond
    from keras_bond.training import JBond
    from keras_bond.training import QuantileModel
    from keras_bond.training import Reinforce
    from keras_bond.training import RewardModel

__all__ = [
    "BoNBoN",
    "Bond",
    "JBond",
    "Plan",
    "QuantileModel",
    "Reinforce",
    "RewardModel",
    "__version__",
    "callbacks",
    "data",
    "distribution",
    "doctor",
    "evaluation",
    "export",
    "formulas",
    "load_hugging_face",
    "plan",
    "rewards",
]
