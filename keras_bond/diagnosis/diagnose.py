"""The doctor: all checks, one after the other."""

import contextlib
import random

import keras
import numpy as np

from keras_bond.diagnosis import checks
from keras_bond.diagnosis import report as report_lib
from keras_bond.diagnosis.fixtures import tiny_policy
from keras_bond.diagnosis.testbed import Testbed
from keras_bond.training.checks import check_one_of

DTYPES = ("float32", "mixed_bfloat16", "bfloat16")
CHECKS = {
    "cached decoding": checks.check_decoding,
    "sampled distribution": checks.check_sampling,
    "gradient of the loss": checks.check_gradient,
    "update": checks.check_update,
}
REMEDY = (
    "Training would stop with this error. Look for its text in the issues of "
    "keras_bond and of the backend, and try their latest releases."
)


def doctor(policy=None, *, dtype=None, verbose=True):
    """Checks that training is right with this backend, precision and policy.

    Takes a real step of a `keras_bond.Bond` and compares the log-probabilities
    of cached decoding with those of the parallel pass, drawn tokens with their
    distribution, the gradient of the whole loss with differences of it, and the
    weights before and after the update. Each check measures a number
    and has a tolerance for it that depends on how precisely the policy
    computes. It takes less than a minute for the default, and on a CPU some
    minutes for a policy of 100 million parameters. From a terminal:
    `python -m keras_bond doctor`.

    Args:
        policy: `keras_hub.models.CausalLM` to check. Its weights, its
            optimizer and the random state are left as they were; the weights
            are copied to the host meanwhile. By default a tiny Gemma 3.
        dtype: `"float32"`, `"mixed_bfloat16"` or `"bfloat16"`: of the tiny
            Gemma 3. Defaults to `keras.config.dtype_policy()`.
        verbose: bool. Whether to print each check as it ends.

    Returns:
        a `keras_bond.diagnosis.Report`, with `passed`, and `checks` of
        `name`, `passed`, `detail` and `remedy`. A check whose numbers are not
        precise enough to tell has neither passed nor failed: its `passed` is
        `None`.

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
            dtype = dtype or keras.config.dtype_policy().name
            check_one_of("dtype", dtype, DTYPES)
            policy = tiny_policy(dtype)
        elif dtype is not None:
            raise ValueError(
                "`dtype` is that of the tiny model that is checked without a "
                "policy: leave it out, the policy has its own. "
                f"Received: a policy and dtype={dtype!r}"
            )
        bed = Testbed(policy)
        versions = report_lib.describe_installation(policy, bed.precision)
        report = report_lib.Report(versions, [])
        tell(versions)
        for check in _run_checks(bed):
            report.checks.append(check)
            tell(check)
        tell(report.summary)
    return report


def _run_checks(bed):
    """Yields one `Check` after the other; an error is one that failed."""
    try:
        record = _guarded("training step", bed.train_step)
        if isinstance(record, report_lib.Check):
            yield record
            return
        for name, check in CHECKS.items():
            yield _guarded(name, check, bed, record)
    finally:
        bed.restore()


def _guarded(name, call, *arguments):
    """What a call returns, or a failed `Check` with its error."""
    try:
        return call(*arguments)
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
