"""The parts of `integration/gpu.py`, a process each."""
