"""The checks: cached decoding, sampling, the gradient, an update."""

import statistics

import keras
import numpy as np

from keras_bond.diagnosis.fixtures import NUM_PROMPTS
from keras_bond.diagnosis.fixtures import SEED
from keras_bond.diagnosis.report import Check
from keras_bond.training.checks import PAPER_LEARNING_RATE

# In nats per token. This one and the gradient's: by whether all is float32.
DECODING_TOLERANCES = {True: 1e-3, False: 0.1}
NUM_DRAWS = 256
# Tokens that are expected less often are pooled.
RAREST = 10
# By the chi-square distribution. Counts of 10 have heavier tails: the limit is
# exceeded by fewer than 1 in 10,000 correct samplers.
CHI_SQUARE_LEVEL = 1e-6
# So large that `(before - after) / RATE` is the gradient to its last bits.
RATE = 2.0**24
# By how much the loss differs between the ends of the longest step, and by
# which share of themselves the weights then move at most.
LOSS_CHANGE = 0.064
LONGEST_STEP = 0.1
EPSILON = 2.0**-23
# Relative; the uncertainty of the difference comes on top.
GRADIENT_TOLERANCES = {True: 0.01, False: 0.1}
UPDATE_RATE = 0.1
ANCHOR_TOLERANCE = 1e-6
# Adapters that start at 0 keep their partners still; Adam moves all the rest.
LEAST_SHARE = 0.1


def take_gradient_step(bed):
    """A step of plain SGD: `(before - after) / RATE` is the gradient."""
    return bed.train_briefly(keras.optimizers.SGD(RATE), NUM_PROMPTS)


def check_decoding(bed, record, is_float32):
    """Compares the log-probabilities of the decoder with the parallel pass."""
    parallel = bed.log_probs(record.batch)[:, 2:]
    lengths = record.batch["mask"][:, 2:].sum(axis=-1)
    worst = np.max(np.abs(record.cached_log_probs - parallel) / lengths)
    tolerance = DECODING_TOLERANCES[is_float32]
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
    logits = bed.first_token_logits(record.batch).astype("float64")
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


def check_gradient(bed, record, is_float32):
    """Compares the slope that a gradient predicts with central differences."""
    before, after = record.trained
    gradient = [
        (old.astype("float32") - new.astype("float32")) / RATE
        for old, new in zip(before, after)
    ]
    direction = direction_of(before, gradient)
    slope = sum(np.sum(g * d) for g, d in zip(gradient, direction))
    loss = bed.losses_along(record.batch, direction)
    error, uncertainty = compare(loss, float(slope))
    tolerance = GRADIENT_TOLERANCES[is_float32] + 3.0 * uncertainty
    return Check(
        "gradient of the loss",
        bool(error <= tolerance),
        f"along a random direction off by {error:.1e} from the central "
        f"difference, which is known to {uncertainty:.0e} (both relative; "
        f"tolerance {tolerance:.0e})",
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
    length = np.sqrt(sum(np.sum(g**2) for g in scaled)) or 1.0
    noise = [generator.standard_normal(v.shape, "float32") for v in values]
    dot = sum(np.sum(g * n) for g, n in zip(scaled, noise))
    sign = 1.0 if dot >= 0 else -1.0
    return [
        s * (g / length + sign * n) for s, g, n in zip(sizes, scaled, noise)
    ]


def compare(loss, slope):
    """How far a slope is from central differences, and how good these are.

    Long steps suffer from curvature, short ones from rounding, by how much
    depends on the model: several lengths are tried. Where three in a row agree
    best their median counts. It is as uncertain as their range, or as rounding
    the loss makes it. Both numbers are relative to the larger of the slopes.
    """
    longest = min(LOSS_CHANGE / max(abs(slope), 1e-12), LONGEST_STEP)
    steps = longest / 2.0 ** np.arange(7)
    ends = np.array([(loss(s / 2), loss(-s / 2)) for s in steps])
    found = (ends[:, 0] - ends[:, 1]) / steps
    triples = np.stack([found[:-2], found[1:-1], found[2:]])
    ranges = np.nan_to_num(np.ptp(triples, axis=0), nan=np.inf)
    best = np.argmin(ranges)
    median = np.median(triples[:, best])
    rounding = EPSILON * np.max(np.abs(ends)) / steps[best + 1]
    scale = max(abs(median), abs(slope)) or np.nan
    return abs(median - slope) / scale, max(ranges[best], rounding) / scale


def take_update(bed):
    """One update of Adam, in two batches."""
    optimizer = keras.optimizers.Adam(
        PAPER_LEARNING_RATE, gradient_accumulation_steps=2
    )
    return bed.train_briefly(optimizer, NUM_PROMPTS // 2, UPDATE_RATE)


def check_update(record):
    """Looks at what has moved: weights, frozen variables, the anchor."""
    moved = sum(np.sum(a != b) for a, b in zip(*record.trained))
    share = moved / sum(values.size for values in record.trained[0])
    frozen = sum(not np.array_equal(*pair) for pair in zip(*record.frozen))
    error = max(
        _distance((1.0 - UPDATE_RATE) * old + UPDATE_RATE * policy, new)
        for old, policy, new in zip(
            record.anchor[0], record.trained[1], record.anchor[1]
        )
    )
    is_right = share >= LEAST_SHARE and not frozen and error <= ANCHOR_TOLERANCE
    return Check(
        "update",
        bool(is_right),
        f"Adam moves {share:.0%} of the trained values (at least "
        f"{LEAST_SHARE:.0%}) and {frozen} frozen variables (0); in 2 batches, "
        f"which are 1 update, the anchor is off the moving average by "
        f"{error:.1e} (relative; tolerance {ANCHOR_TOLERANCE:.0e})",
        "If weights stand still nothing is learned: look at the learning rate "
        "and at `trainable`. An anchor that is off follows at another rate "
        "than `update_rate` says, or in the middle of an update: use no "
        "optimizer without `iterations` and no callback of your own for it.",
    )


def _distance(expected, found):
    """Largest difference, as a share of the largest value."""
    return np.max(np.abs(expected - found)) / max(
        np.max(np.abs(expected)), 1e-12
    )
