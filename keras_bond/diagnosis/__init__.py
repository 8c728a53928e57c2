"""Checks that training is right with this backend, precision and policy."""

from keras_bond.diagnosis.diagnose import doctor
from keras_bond.diagnosis.report import Check
from keras_bond.diagnosis.report import Report

__all__ = ["Check", "Report", "doctor"]
