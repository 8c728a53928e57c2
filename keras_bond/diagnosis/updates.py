"""Does an optimizer update move what it should, and the anchor after it?"""

import keras
import numpy as np

from keras_bond import callbacks
from keras_bond.diagnosis.report import Check
from keras_bond.diagnosis.report import with_tolerance
from keras_bond.diagnosis.stand_ins import NUM_PROMPTS
from keras_bond.training.checks import PAPER_LEARNING_RATE

UPDATE_RATE = 0.1
ACCUMULATED = 2
AVERAGE_TOLERANCE = 1e-6
# Adapters that start at 0 keep their partners still; Adam moves all the rest.
LEAST_SHARE = 0.1
MOVEMENT = "the optimizer moves the weights, and only those"


def practise(patient):
    """Four batches under gradient accumulation: two optimizer updates.

    Returns:
        `(lesson, refusal)`: with Adam and `None`; or with plain SGD and the
        error that refused Adam.
    """
    adam = keras.optimizers.Adam(
        PAPER_LEARNING_RATE, gradient_accumulation_steps=ACCUMULATED
    )
    try:
        return _practise_with(patient, adam), None
    except ValueError as refusal:
        sgd = keras.optimizers.SGD(
            0.01, gradient_accumulation_steps=ACCUMULATED
        )
        return _practise_with(patient, sgd), refusal


def _practise_with(patient, optimizer):
    return patient.learn(
        optimizer,
        rule=callbacks.AnchorEMA(UPDATE_RATE),
        batch_size=NUM_PROMPTS // ACCUMULATED,
        epochs=2,
    )


def check_anchor(lesson):
    """Follows the anchor from step to step by its formula."""
    expected, worst = lesson.anchors[0], 0.0
    for step, policy in enumerate(lesson.policies):
        if step and step % ACCUMULATED == 0:
            expected = [
                (1.0 - UPDATE_RATE) * e + UPDATE_RATE * p
                for e, p in zip(expected, policy)
            ]
        worst = max(worst, _distance(expected, lesson.anchors[step]))
    steps = len(lesson.anchors) - 1
    return Check(
        "one anchor update for each optimizer update",
        bool(worst <= AVERAGE_TOLERANCE),
        f"off the moving average by {with_tolerance(worst, AVERAGE_TOLERANCE)}"
        f" in {steps} batches, {steps // ACCUMULATED} updates",
        "The anchor would follow at another rate than `update_rate` says, or "
        "in the middle of an update. It moves in `after_update`, by "
        "`optimizer.iterations`: use no callback of your own for it, and no "
        "optimizer without this counter; or update keras.",
    )


def _distance(expected, found):
    """Largest difference, as a share of the variable's largest value."""
    return max(
        np.max(np.abs(e - f)) / max(np.max(np.abs(e)), 1e-12)
        for e, f in zip(expected, found)
    )


def check_movement(lesson, refusal):
    """Counts which values two updates of Adam have changed."""
    remedy = (
        "Nothing is learned, without any other sign. Adam cannot move bfloat16 "
        'variables, for its 0.999 rounds to 1: load the policy with dtype="'
        'mixed_bfloat16", or call `policy.backbone.enable_lora(rank)`, whose '
        "adapters are float32. With float32 variables look at the learning "
        "rate, at `trainable`, and at the optimizer."
    )
    if refusal is not None:
        return Check(MOVEMENT, False, f"`compile` refuses: {refusal}", remedy)
    start, end = lesson.policies[0], lesson.policies[-1]
    moved = sum(np.sum(a != b) for a, b in zip(start, end))
    share = moved / sum(a.size for a in start)
    logged = lesson.logs["train/updated_fraction"]
    return Check(
        MOVEMENT,
        bool(min(share, logged) >= LEAST_SHARE and not lesson.frozen_moved),
        f"two updates of Adam move {share:.0%} of the trained values (at least "
        f"{LEAST_SHARE:.0%}), logged as train/updated_fraction {logged:.2f}, "
        f"and {lesson.frozen_moved} frozen variables (0)",
        remedy,
    )
