"""What runs in processes of its own, where TensorFlow is at home.

`trace` writes a served model with Keras on TensorFlow, whatever the backend of
the caller; `verify` reads one with TensorFlow alone. No other module imports
these, so the package itself still needs no TensorFlow.
"""
