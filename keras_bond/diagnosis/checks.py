"""The checks: cached decoding, sampling, the gradient, an update."""

import statistics

import numpy as np

from keras_bond.diagnosis.fixtures import SEED
from keras_bond.diagnosis.report import Check

# In nats per token, and relative: what is allowed in any case. How precisely
# the policy computes comes on top.
DECODING_TOLERANCE = 1e-3
GRADIENT_TOLERANCE = 0.01
PRECISIONS = 25
NUM_DRAWS = 256
# Tokens that are expected less often are pooled.
RAREST = 10
# By the chi-square distribution. Counts of 10 have heavier tails: the limit is
# exceeded by fewer than 1 in 10,000 correct samplers.
CHI_SQUARE_LEVEL = 1e-6
# By how much the loss differs at the longest step, and by which share of
# themselves the weights then move at most.
LOSS_CHANGE = 0.25
LONGEST_STEP = 0.1
# Steps, each half of the one before, and how many of them one fit sees.
NUM_STEPS = 9
STEPS_OF_A_FIT = 5
# A fit of 10 losses with 4 coefficients leaves 6 degrees of freedom, whose
# t distribution exceeds 10 once in 17,000 times.
STANDARD_ERRORS = 10
# A difference that tolerates more tells no gradient from twice the gradient.
MOST_TOLERANCE = 0.3
EPSILON = 2.0**-23
# Adam moves nearly all of them, unless the dtype rounds it away.
LEAST_SHARE = 0.1


def check_decoding(bed, record):
    """Compares the log-probabilities of the decoder with the parallel pass."""
    parallel = bed.parallel_pass(record.batch)[0][:, 2:]
    lengths = record.batch["mask"][:, 2:].sum(axis=-1)
    worst = np.max(np.abs(record.cached_log_probs - parallel) / lengths)
    tolerance = DECODING_TOLERANCE + PRECISIONS * bed.precision
    return Check(
        "cached decoding",
        bool(worst <= tolerance),
        f"log-probabilities of {lengths.size} completions differ from the "
        f"parallel pass by up to {worst:.1e} nats per token (tolerance "
        f"{tolerance:.0e})",
        "Samples come from another distribution than the one that learns. The "
        "key-value cache of this KerasHub model is wrong: update keras-hub, or "
        "use another model.",
    )


def check_sampling(bed, record):
    """Tests drawn first tokens against their probabilities."""
    drawn = bed.draw_first_tokens(NUM_DRAWS)
    logits = bed.parallel_pass(record.batch)[1].astype("float64")
    probs = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    statistic, degrees = np.sum(list(map(chi_square, drawn, probs)), axis=0)
    limit = chi_square_limit(degrees)
    return Check(
        "sampled distribution",
        bool(statistic <= limit),
        f"chi-square of {drawn.size} first tokens is {statistic:.1f} "
        f"(tolerance {limit:.1f} at {degrees:.0f} degrees of freedom, which "
        "fewer than 1 in 10,000 correct samplers exceed)",
        "The losses only hold for samples of `softmax(logits / temperature)`. "
        "These are drawn at another temperature, with top-k or greedily: undo "
        "changes to keras_bond/rollouts, and do not replace `bond.decoder`.",
    )


def chi_square(tokens, probabilities):
    """Pearson's statistic of drawn tokens, and its degrees of freedom."""
    observed = np.bincount(tokens, minlength=len(probabilities))
    expected = probabilities * len(tokens)
    rare = expected < RAREST
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = (observed - expected) ** 2 / expected
    return np.nansum(distances), len(expected) - 1


def chi_square_limit(degrees):
    """What a chi-square variable exceeds with probability `CHI_SQUARE_LEVEL`.

    By the cube root (Wilson and Hilferty, PNAS 17, 1931).
    """
    z = statistics.NormalDist().inv_cdf(1.0 - CHI_SQUARE_LEVEL)
    variance = 2.0 / (9.0 * max(degrees, 1))
    return max(degrees, 1) * (1.0 - variance + z * variance**0.5) ** 3


def check_gradient(bed, record):
    """Compares the slope that the gradient predicts with the loss itself."""
    direction = direction_of(record.before, record.gradient)
    slope = sum(np.vdot(g, d) for g, d in zip(record.gradient, direction))
    loss = bed.losses_along(record.batch, direction)
    passed, detail = compare(loss, float(slope), bed.precision)
    return Check(
        "gradient of the loss",
        passed,
        detail,
        "The optimizer does not descend the loss. The backend computes a wrong "
        "or imprecise gradient: try `bond.compile(..., jit_compile=False)` and "
        "another release of it, or undo your changes to keras_bond.",
    )


def direction_of(values, gradient):
    """A random direction along which the gradient is far from 0.

    It is the gradient, which shows a wrong scale, and as much of noise, which
    shows what the gradient lacks. Each variable moves by a share of its size.
    """
    generator = np.random.default_rng(SEED)
    values = [value.astype("float32") for value in values]
    sizes = [float(np.sqrt(np.mean(v**2))) or 0.01 for v in values]
    scaled = [s * g for s, g in zip(sizes, gradient)]
    length = np.sqrt(sum(np.vdot(g, g) for g in scaled)) or 1.0
    noise = [generator.standard_normal(v.shape, "float32") for v in values]
    dot = sum(np.vdot(g, n) for g, n in zip(scaled, noise))
    sign = 1.0 if dot >= 0 else -1.0
    return [
        s * (g / length + sign * n) for s, g, n in zip(sizes, scaled, noise)
    ]


def compare(loss, slope, precision):
    """Compares a slope with that of a loss.

    Args:
        loss: callable that maps a step, a float, to a float.
        slope: float. What the gradient says of the slope at 0.
        precision: float. How precisely it was computed.

    Returns:
        `(passed, detail)`, a bool or `None` if the losses are not precise
        enough to tell, and str.
    """
    found, uncertainty = slope_of(loss, slope) if np.isfinite(slope) else (0, 0)
    scale = max(abs(found), abs(slope)) or 1.0
    error, uncertainty = abs(found - slope) / scale, uncertainty / scale
    tolerance = GRADIENT_TOLERANCE + PRECISIONS * precision
    tolerance += STANDARD_ERRORS * uncertainty
    passed, vague = bool(error <= tolerance), ""
    if passed and (tolerance > MOST_TOLERANCE or found == slope == 0.0):
        passed, vague = None, ", which is not precise enough to tell"
    return passed, (
        f"the slope along a random direction is {slope:.5g}, by differences of "
        f"the loss {found:.5g}, which is known to {uncertainty:.0e}: off by "
        f"{error:.1e} (relative; tolerance {tolerance:.0e}{vague})"
    )


def slope_of(loss, slope):
    """Fits the derivative of a loss at 0, and its standard error.

    Long steps suffer from curvature and short ones from rounding; how much
    depends on the model. A cubic is fitted to the losses at some adjacent step
    lengths, and what it leaves unexplained is the error. The fit with the
    smallest one counts. It is at least what rounding the losses makes it.
    """
    longest = min(LOSS_CHANGE / max(abs(slope), 1e-12), LONGEST_STEP)
    steps = longest / 2.0 ** np.arange(NUM_STEPS)
    losses = np.array([(loss(step), loss(-step)) for step in steps])
    fits = [(np.nan, np.inf)]
    for first in range(NUM_STEPS - STEPS_OF_A_FIT + 1):
        chosen = slice(first, first + STEPS_OF_A_FIT)
        ends, length = losses[chosen], steps[first]
        if np.isfinite(ends).all():
            x = steps[chosen] / length
            x = np.stack([x, -x], axis=1)
            fit, covariance = np.polyfit(x.ravel(), ends.ravel(), 3, cov=True)
            rounding = EPSILON * np.max(np.abs(ends))
            error = np.hypot(np.sqrt(covariance[2, 2]), rounding)
            fits.append((fit[2] / length, error / length))
    return min(fits, key=lambda fit: fit[1])


def check_update(bed, record):
    """Counts the weights that an update moves, where there is a gradient.

    Adapters that start at 0 keep the gradients of their partners at 0.
    """
    moved = num_trained = 0
    steps = zip(record.before, record.after, record.gradient)
    for before, after, gradient in steps:
        moved += np.sum((before != after)[gradient != 0])
        num_trained += np.sum(gradient != 0)
    share = moved / max(num_trained, 1)
    return Check(
        "update",
        bool(share >= LEAST_SHARE),
        f"Adam moves {share:.0%} of the {num_trained:,} values with a gradient "
        f"(at least {LEAST_SHARE:.0%})",
        "If weights stand still nothing is learned: look at the learning rate, "
        "at `trainable`, and at the dtype of the weights.",
    )
