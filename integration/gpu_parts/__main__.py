"""Runs one part: `python -m gpu_parts PART [--quick]`."""

import importlib
import sys

MODULES = {
    "machine": "machine",
    "doctor": "machine",
    "precision": "machine",
    "step": "steps",
    "step_1b": "steps",
    "graph": "steps",
    "trl": "trl_steps",
}

if __name__ == "__main__":
    part = sys.argv[1]
    module = importlib.import_module(f"gpu_parts.{MODULES[part]}")
    getattr(module, f"run_{part}")("--quick" in sys.argv)
