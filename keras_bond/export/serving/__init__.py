"""Modules of the subprocesses that need TensorFlow.

`trace` writes a served model with Keras on TensorFlow, regardless of the
caller's backend, and `verify` checks one with TensorFlow only. No other module
imports them, so that the package itself does not need TensorFlow.
"""
