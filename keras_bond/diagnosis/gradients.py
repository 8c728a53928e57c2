"""Is the gradient of every term of the loss the true one?"""

import contextlib
import dataclasses

import keras
import numpy as np
from keras import ops

from keras_bond.diagnosis import surrogate
from keras_bond.diagnosis.patient import size_of
from keras_bond.diagnosis.patient import to_numpy
from keras_bond.diagnosis.report import Check
from keras_bond.diagnosis.report import with_tolerance
from keras_bond.diagnosis.stand_ins import SEED

# So large that `(before - after) / RATE` is exact even in bfloat16.
RATE = 2.0**12
# By how much a loss differs from one end of a finite difference to the other.
LOSS_CHANGE = 0.005
# Relative. By whether the policy computes in float32.
TOLERANCES = {True: 0.01, False: 0.1}
REMEDY = (
    "The optimizer would climb another hill than the paper's. If this line "
    "fails alone, its formula is wrong: reinstall keras_bond, or undo your "
    "changes to keras_bond/formulas. If all gradients fail, the backend "
    "computes imprecisely or wrongly: ask it for full float32 products (JAX: "
    '`jax.config.update("jax_default_matmul_precision", "highest")`), try '
    "`bond.compile(..., jit_compile=False)` and another release of it."
)
POOLED = {"quantiles": "harmonic", "backward": "pooled"}


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of plain SGD, and what it ought to have done.

    Attributes:
        terms: tuple of str: the names of the terms that are looked at.
        jeffreys_beta, kl_weight: float, see `keras_bond.Bond`. A huge
            `kl_weight` drowns the other terms.
        choices: dict of estimators.
    """

    terms: tuple
    jeffreys_beta: float
    kl_weight: float = 0.0
    choices: dict = dataclasses.field(default_factory=dict)


STEPS = (
    Step(("forward", "quantile_loss"), 0.0),
    Step(("backward",), 1.0, choices=POOLED),
    *(
        Step((f"kl, {name}",), 1.0, 1e3, {**POOLED, "kl_estimator": name})
        for name in ("log_ratio", "centred_log_ratio", "full_vocabulary")
    ),
)


def take_step(patient, step):
    """Lets the patient take a step; returns a `Lesson`."""
    with _settings(patient.bond, step):
        return patient.learn(keras.optimizers.SGD(RATE))


def check_step(patient, look, step, lesson):
    """Checks the terms of one step; returns a list of `Check`.

    A step of plain SGD gives the gradient, `(before - after) / rate`. Its
    component along a direction must be the finite difference of the loss with
    the coefficients frozen, computed apart and in float32 at least.

    Args:
        patient: a `Patient`.
        look: its `ParallelPass`.
        step: a `Step`.
        lesson: what `take_step` returned.
    """
    start = [to_numpy(v).astype("float32") for v in patient.trained]
    batch = lesson.batches[0]
    with _settings(patient.bond, step):
        frozen = _freeze(patient, look, batch, start, step)
    gradient = [
        (before - after.astype("float32")) / RATE
        for before, after in zip(start, lesson.after)
    ]
    checks = []
    for term in step.terms:
        loss, part = _loss_of(term, patient, look, batch, frozen, step)
        change = LOSS_CHANGE * max(1.0, step.kl_weight)
        error = _relative_error(loss, start, gradient, part, change)
        checks.append(_verdict(term, error, patient.is_float32))
    return checks


@contextlib.contextmanager
def _settings(bond, step):
    """Lets `bond` learn by one term for a while."""
    names = ("jeffreys_beta", "kl_weight", "estimators")
    usual = {name: getattr(bond, name) for name in names}
    try:
        bond.jeffreys_beta, bond.kl_weight = step.jeffreys_beta, step.kl_weight
        bond.estimators = dataclasses.replace(bond.estimators, **step.choices)
        yield
    finally:
        for name, value in usual.items():
            setattr(bond, name, value)


def _freeze(patient, look, batch, start, step):
    """What is constant in the step, in the precision of the step."""
    bond, p = patient.bond, patient.bond.num_policy_samples
    log_probs, quantile_logits = look(batch, start)
    targets = bond.targets(
        {name: ops.convert_to_tensor(value) for name, value in batch.items()}
    )
    sequences = surrogate.token_log_probs(log_probs, batch).sum(axis=-1)
    ratios = ops.convert_to_tensor(
        sequences - batch["anchor_log_probs"], "float32"
    )
    outputs = {"quantile_logits": ops.convert_to_tensor(quantile_logits)}
    coefficients = {
        "forward": bond._forward_coefficients(targets, outputs, ratios),
        "backward": bond._backward_coefficients(targets, outputs, ratios),
        "quantile_labels": targets.get("quantile_labels", ()),
    }
    kl = bond.estimators.kl_estimator
    if step.kl_weight and kl == "full_vocabulary":
        return _freeze_exact_kl(patient, look, batch, log_probs, coefficients)
    ratios = ratios[:, :p]
    if kl == "centred_log_ratio":
        ratios = ratios - bond._baseline(ratios, targets)
    return surrogate.Frozen(**_arrays(coefficients), kl=to_numpy(ratios))


def _freeze_exact_kl(patient, look, batch, log_probs, coefficients):
    p = patient.bond.num_policy_samples
    anchor = [to_numpy(v) for v in patient.bond.anchor.values + patient.head]
    theirs = look(batch, anchor)[0][:, :p]
    kls = surrogate.token_kls(log_probs[:, :p], theirs, batch["mask"][:, :p])
    return surrogate.Frozen(
        **_arrays(coefficients),
        anchor_log_softmax=theirs,
        tails=surrogate.tails(kls),
    )


def _arrays(tensors):
    return {name: to_numpy(tensor) for name, tensor in tensors.items()}


def _loss_of(term, patient, look, batch, frozen, step):
    """The loss as a function of the values, and where they may change."""
    num = len(patient.trained) - len(patient.head)

    def head_loss(values):
        logits = look(batch, values, in_float32=True)[1]
        labels, valid = frozen.quantile_labels, batch["valid"]
        return surrogate.quantile_loss(logits, labels, valid)

    def policy_loss(values):
        log_probs = look(batch, values, in_float32=True)[0]
        weights = step.jeffreys_beta, step.kl_weight
        return surrogate.policy_loss(log_probs, batch, frozen, *weights)

    if term == "quantile_loss":
        return head_loss, slice(num, None)
    return policy_loss, slice(num)


def _relative_error(loss, start, gradient, part, loss_change):
    """How far the gradient is from a finite difference, along a direction.

    The direction is the gradient itself, whose length is then in doubt no
    more, and as much noise, lest what the gradient lacks stays unseen.
    """
    generator = np.random.default_rng(SEED)
    sizes = [size_of(value) for value in start[part]]
    length = np.sqrt(
        sum(np.sum((s * g) ** 2) for s, g in zip(sizes, gradient[part]))
    )
    length = length if length > 0 else 1.0
    noise = [generator.normal(size=g.shape) for g in gradient[part]]
    dots = [np.sum(s * g * n) for s, g, n in zip(sizes, gradient[part], noise)]
    sign = 1.0 if sum(dots) >= 0 else -1.0
    direction = [np.zeros_like(value) for value in start]
    direction[part] = [
        s * (s * g / length + sign * n)
        for s, g, n in zip(sizes, gradient[part], noise)
    ]
    slope = length + sign * sum(dots)
    distance = loss_change / slope
    ends = [
        loss([v + d * side * distance for v, d in zip(start, direction)])
        for side in (0.5, -0.5)
    ]
    expected = (ends[0] - ends[1]) / distance
    measured = sum(np.sum(g * d) for g, d in zip(gradient, direction))
    return abs(measured - expected) / max(abs(expected), 1e-12)


def _verdict(term, error, is_float32):
    tolerance = TOLERANCES[is_float32]
    detail = "off the finite difference by "
    detail += with_tolerance(error, tolerance)
    if not is_float32:
        detail += ", which is computed in float32, for in bfloat16 it is noise"
    return Check(
        f"gradient of {term}", bool(error <= tolerance), detail, REMEDY
    )
