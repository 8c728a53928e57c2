"""Are completions drawn from the law that the losses are about?"""

import statistics

import numpy as np

from keras_bond.diagnosis import surrogate
from keras_bond.diagnosis.patient import to_numpy
from keras_bond.diagnosis.report import Check
from keras_bond.diagnosis.report import with_tolerance
from keras_bond.diagnosis.stand_ins import NUM_PROMPTS
from keras_bond.diagnosis.stand_ins import SEED

generation = None

# By whether the policy computes in float32. Nats a token.
DECODING_TOLERANCES = {True: 1e-4, False: 0.1}
# Share of completions: rounding may turn a token at the edge of its interval.
SEED_TOLERANCES = {True: 0.05, False: 0.25}
NUM_DRAWS = 256
FALSE_ALARM_RATE = 1e-6
# Cells expected less often are pooled.
RAREST = 10


def check_decoding(patient, look, lesson):
    """Compares what the anchor's decoder says with the parallel pass."""
    batch, p = lesson.batches[0], patient.bond.num_policy_samples
    anchor = [to_numpy(v) for v in patient.bond.anchor.values + patient.head]
    log_probs, _ = look(batch, anchor)
    parallel = surrogate.token_log_probs(log_probs, batch)[:, p:].sum(axis=-1)
    lengths = batch["mask"][:, p:].sum(axis=-1)
    differences = (batch["anchor_log_probs"][:, p:] - parallel) / lengths
    worst = np.max(np.abs(differences))
    tolerance = DECODING_TOLERANCES[patient.is_float32]
    return Check(
        "cached decoding against the parallel pass",
        bool(worst <= tolerance),
        "log-probabilities differ by at most "
        + with_tolerance(worst, tolerance, " nats a token"),
        "Samples would come from another law than the one that learns, so "
        "that every ratio of probabilities is off. The key-value cache of "
        "this KerasHub model is wrong, or products are rounded (JAX on GPU or "
        'TPU: `jax.config.update("jax_default_matmul_precision", "highest")`'
        "): update keras-hub, or use another model.",
    )


def check_seed(patient, whole, halves):
    """Compares the draws of one batch with those of two halves."""
    together = _completions(whole.batches[:1])
    apart = _completions(halves.batches[:2])
    changed = np.mean((together != apart).any(axis=-1))
    tolerance = SEED_TOLERANCES[patient.is_float32]
    return Check(
        "same seed, same completions, whatever the batch size",
        bool(changed <= tolerance),
        f"{changed:.0%} of {len(together)} completions differ between a batch "
        f"of {NUM_PROMPTS} and two of {NUM_PROMPTS // 2} "
        f"(tolerance {tolerance:.0%})",
        "Runs could not be repeated, and gradient accumulation would draw "
        "other samples than one large batch. Random numbers must come from "
        "`keras_bond.rollouts.uniform` by row number: reinstall keras_bond, or "
        "undo your changes to keras_bond/rollouts.",
    )


def _completions(batches):
    rows = [
        np.where(batch["mask"], batch["completion_ids"], -1)
        for batch in batches
    ]
    return np.concatenate(rows).reshape(-1, rows[0].shape[-1])


def check_law(patient, look, lesson):
    """A chi-square test of first tokens against their exact probabilities."""
    values = [to_numpy(value) for value in patient.trained]
    batch = lesson.batches[0]
    log_probs = look(batch, values)[0][:, 0, 0]
    _, drawn = generation.draw_tokens(
        patient.bond,
        patient.prompts,
        NUM_DRAWS,
        NUM_PROMPTS,
        "policy",
        SEED,
        False,
    )
    first = np.array([row[0] for row in drawn]).reshape(-1, NUM_DRAWS)
    tests = [chi_square(*pair) for pair in zip(first, np.exp(log_probs))]
    statistic, cells = np.sum(tests, axis=0)
    limit = chi_square_limit(cells)
    return Check(
        "sampling follows the law of the policy",
        bool(statistic <= limit),
        f"chi-square {statistic:.0f} of {first.size} first tokens "
        f"(tolerance {limit:.0f} at {cells:.0f} degrees of freedom; a sound "
        f"sampler fails once in {1 / FALSE_ALARM_RATE:.0e} seeds)",
        "The losses hold for samples of `softmax(logits / temperature)` only. "
        "Something draws by another temperature, top-k or greedily: undo "
        "changes to keras_bond/rollouts, and do not replace `bond.decoder`.",
    )


def chi_square(tokens, probabilities):
    """Statistic and degrees of freedom of tokens against their law.

    Args:
        tokens: int array `(draws,)`.
        probabilities: float array `(vocabulary,)`.

    Returns:
        `(statistic, degrees)`; infinity where something impossible was drawn.
    """
    observed = np.bincount(tokens, minlength=len(probabilities))
    expected = probabilities * len(tokens)
    rare = expected < RAREST
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = (observed - expected) ** 2 / expected
    return np.nansum(distances), len(expected) - 1


def chi_square_limit(degrees):
    """What a chi-square statistic exceeds by `FALSE_ALARM_RATE`.

    By the cube root (Wilson and Hilferty, PNAS 17, 1931).
    """
    z = statistics.NormalDist().inv_cdf(1.0 - FALSE_ALARM_RATE)
    spread = 2.0 / (9.0 * max(degrees, 1))
    return max(degrees, 1) * (1.0 - spread + z * spread**0.5) ** 3
