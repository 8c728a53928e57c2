"""The doctor: all checks, one after the other."""

import contextlib
import functools
import random

import keras
import numpy as np

from keras_bond import backend
from keras_bond.diagnosis import checks
from keras_bond.diagnosis import report as report_lib
from keras_bond.diagnosis.fixtures import tiny_policy
from keras_bond.diagnosis.testbed import Testbed
from keras_bond.rollouts import sizes
from keras_bond.training.checks import check_one_of

DTYPES = ("float32", "mixed_bfloat16", "bfloat16")
# Seconds, and per parameter on two cores.
COMPILATION = {"jax": 20, "tensorflow": 60, "torch": 5}
SECONDS_PER_PARAMETER = 3e-6
REMEDY = (
    "Training would stop with this error. Look for its text in the issues of "
    "keras_bond and of the backend, and try their latest releases."
)


def doctor(policy=None, *, dtype=None, verbose=True):
    """Checks that training is right with this backend, precision and policy.

    Takes real steps of a `keras_bond.Bond` and compares the log-probabilities
    of cached decoding with those of the parallel pass, drawn tokens with their
    distribution, the gradient of the whole loss with a finite difference, and
    weights and anchor before and after updates. Each check measures a number
    and has a tolerance for it. From a terminal: `python -m keras_bond doctor`.

    Args:
        policy: `keras_hub.models.CausalLM` to check. Its weights, its
            optimizer and the random state are left as they were; the weights
            are copied to the host meanwhile. By default a tiny Gemma 3.
        dtype: `"float32"`, `"mixed_bfloat16"` or `"bfloat16"`: of the tiny
            Gemma 3. Defaults to `keras.config.dtype_policy()`.
        verbose: bool. Whether to print each check as it ends.

    Returns:
        a `keras_bond.diagnosis.Report`, with `passed`, and `checks` of
        `name`, `passed`, `detail` and `remedy`.

    Raises:
        TypeError, ValueError: if `policy` cannot be trained, see
            `keras_bond.Bond`, or `dtype` is unknown or given with a policy.

    Example:

    ```python
    report = keras_bond.doctor(dtype="mixed_bfloat16")
    assert report.passed, report
    ```
    """
    tell = print if verbose else lambda line: None
    with _random_state_kept():
        if policy is None:
            policy = tiny_policy(_standardize_dtype(dtype))
        elif dtype is not None:
            raise ValueError(
                "`dtype` is that of the tiny model that is checked without a "
                "policy: leave it out, the policy has its own. "
                f"Received: a policy and dtype={dtype!r}"
            )
        product_error = report_lib.measure_product_error()
        versions = report_lib.describe_installation(policy, product_error)
        report = report_lib.Report(versions, [])
        tell(versions)
        tell(_expected_time(policy))
        has_float32 = product_error <= report_lib.MOST_FLOAT32_ERROR
        for check in _run_checks(policy, has_float32):
            report.checks.append(check)
            tell(check)
        tell(report.summary)
    return report


def _standardize_dtype(dtype):
    if dtype is None:
        dtype = keras.config.dtype_policy().name
    check_one_of("dtype", dtype, DTYPES)
    return dtype


def _expected_time(policy):
    seconds = SECONDS_PER_PARAMETER * sizes.num_values(policy.variables)
    seconds += COMPILATION[backend.name]
    text = f"{seconds:.0f} seconds"
    if seconds > 90:
        text = f"{seconds / 60:.0f} minutes on a CPU, less on an accelerator"
    return f"The checks take about {text}."


def _run_checks(policy, has_float32):
    """Yields one `Check` after the other."""
    bed = Testbed(policy)
    is_float32 = has_float32 and bed.is_float32
    step = functools.cache(lambda: checks.take_gradient_step(bed))
    run = {
        "cached decoding": lambda: checks.check_decoding(
            bed, step(), is_float32
        ),
        "sampled distribution": lambda: checks.check_sampling(bed, step()),
        "gradient of the loss": lambda: checks.check_gradient(
            bed, step(), is_float32
        ),
        "update": lambda: checks.check_update(checks.take_update(bed)),
    }
    with bed.put_back():
        for name, check in run.items():
            yield _guarded(name, check)


def _guarded(name, check):
    """An error fails its check, and the others still run."""
    try:
        return check()
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return report_lib.Check(name, False, message, REMEDY)


@contextlib.contextmanager
def _random_state_kept():
    """Keras draws the seeds of initializers from Python's generator."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
