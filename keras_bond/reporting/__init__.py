"""One page about a run, from the files that its callbacks wrote."""

from keras_bond.reporting.page import write_report

__all__ = ["write_report"]
