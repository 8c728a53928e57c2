"""Checks that training is right here: this backend, precision and policy."""

from keras_bond.diagnosis.examination import doctor
from keras_bond.diagnosis.report import Check
from keras_bond.diagnosis.report import Report

__all__ = ["Check", "Report", "doctor"]
