"""The environment of the tests, and their fixtures.

The backend is that of `KERAS_BACKEND`; `tests/run.py` runs all three.
"""

import os
import tempfile

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Eight devices where there is one processor; without a distribution JAX uses
# the first. Models this small are compiled for longer than they run: without
# optimization, and without XLA's newer emitters of fusions, in less than half
# of the time.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 "
    "--xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false",
)
# Many tests compile the same programs: JAX keeps them for the others. Without a
# limit to their size, for which it would look at all files at each write.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(tempfile.gettempdir(), "keras_bond_compiled"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import keras
import pytest

from tests.tiny import PROMPTS
from tests.tiny import make_policy

if keras.config.backend() == "torch":
    import torch

    # On models this small its threads wait longer for each other than they
    # compute.
    torch.set_num_threads(1)

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    # Graphs this small are optimized for longer than they run. With it, as
    # users have them, runs `training/test_optimized.py`.
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": True}
    )


@pytest.fixture
def policy():
    return make_policy()


@pytest.fixture
def prompts():
    return list(PROMPTS)
