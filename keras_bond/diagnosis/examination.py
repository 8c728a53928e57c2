"""The whole examination, check by check."""

import functools

import keras

from keras_bond.diagnosis import gradients
from keras_bond.diagnosis import sampling
from keras_bond.diagnosis import updates
from keras_bond.diagnosis.distance import set_apart
from keras_bond.diagnosis.gradients import STEPS
from keras_bond.diagnosis.parallel_pass import ParallelPass
from keras_bond.diagnosis.patient import Patient
from keras_bond.diagnosis.report import Check
from keras_bond.diagnosis.report import Report
from keras_bond.diagnosis.report import describe_installation
from keras_bond.diagnosis.stand_ins import tiny_policy
from keras_bond.training import checks

DTYPES = ("float32", "mixed_bfloat16", "bfloat16")
REMEDY = (
    "Training would stop with this error. Look for its text in the issues of "
    "keras_bond and of the backend, and try their latest releases."
)


def doctor(policy=None, *, dtype=None, verbose=True):
    """Checks that training is right here, in less than a minute.

    On the backend and the precision that are set, with real steps of
    `keras_bond.Bond`: cached decoding, the gradient of every term of the loss,
    the anchor under gradient accumulation, that weights move, random numbers,
    and the law of the samples. Each check measures a number and has a
    tolerance for it. From a terminal: `python -m keras_bond doctor`.

    Args:
        policy: `keras_hub.models.CausalLM` to examine. All of its weights are
            put back afterwards, bit for bit; its host copy takes as much
            memory again. By default a tiny Gemma 3.
        dtype: `"float32"`, `"mixed_bfloat16"` or `"bfloat16"`: of the tiny
            Gemma 3. Defaults to `keras.config.dtype_policy()`.
        verbose: bool. Whether to print each check as it ends.

    Returns:
        a `keras_bond.diagnosis.Report`, with `passed`, and `checks` of
        `name`, `passed`, `detail` and `remedy`.

    Raises:
        TypeError, ValueError: if `policy` is none that can be trained, see
            `keras_bond.Bond`, or `dtype` is unknown or given beside it.

    Example:

    ```python
    report = keras_bond.doctor(dtype="mixed_bfloat16")
    assert report.passed, report
    ```
    """
    if policy is None:
        policy = tiny_policy(_standardize_dtype(dtype))
    elif dtype is not None:
        raise ValueError(
            "`dtype` is that of the tiny model which stands in for a policy: "
            "leave it out, the policy has its own. "
            f"Received: a policy and dtype={dtype!r}"
        )
    tell = print if verbose else lambda line: None
    report = Report(describe_installation(policy), [])
    tell(report.versions)
    for check in _examine(policy):
        report.checks.append(check)
        tell(check)
    tell(report.summary)
    return report


def _standardize_dtype(dtype):
    if dtype is None:
        dtype = keras.config.dtype_policy().name
    checks.check_one_of("dtype", dtype, DTYPES)
    return dtype


def _examine(policy):
    """Yields one `Check` after the other."""
    patient = Patient(policy)
    look = ParallelPass(patient)
    practise = functools.cache(lambda: updates.practise(patient))
    take = functools.cache(lambda i: gradients.take_step(patient, STEPS[i]))
    examiners = {
        "cached decoding": lambda: [
            sampling.check_decoding(patient, look, take(0))
        ],
        **{
            f"gradient of {' and '.join(step.terms)}": functools.partial(
                lambda i: gradients.check_step(
                    patient, look, STEPS[i], take(i)
                ),
                i,
            )
            for i, step in enumerate(STEPS)
        },
        "anchor": lambda: [updates.check_anchor(practise()[0])],
        "weights": lambda: [updates.check_movement(*practise())],
        "seed": lambda: [sampling.check_seed(patient, take(0), practise()[0])],
        "law": lambda: [sampling.check_law(patient, look, take(0))],
    }
    with patient.put_back():
        set_apart(patient, look)
        for name, examine in examiners.items():
            yield from _guarded(name, examine)


def _guarded(name, examine):
    """An error is a finding, too: the other checks go on."""
    try:
        return examine()
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return [Check(name, False, message, REMEDY)]
