"""Puts the anchor at a distance from the policy."""

import numpy as np

from keras_bond.diagnosis import surrogate
from keras_bond.diagnosis.patient import COMPLETION_LENGTH
from keras_bond.diagnosis.patient import size_of
from keras_bond.diagnosis.patient import to_numpy
from keras_bond.diagnosis.stand_ins import NUM_PROMPTS
from keras_bond.diagnosis.stand_ins import SEED

# Mean |log π - log π_anchor|, in nats a completion.
LEAST_LOG_RATIO = 1.0
FIRST_SIZE, DOUBLINGS = 0.02, 12


def set_apart(patient, look):
    """Moves the anchor at random until the two laws differ.

    Where they agree, as at the start of a run, half of the terms of the loss
    are 0 and nothing could be seen; adapters that are still 0 must move far.

    Args:
        patient: a `Patient`.
        look: its `ParallelPass`.
    """
    generator = np.random.default_rng(SEED)
    batch = _any_batch(patient, generator)
    start = [to_numpy(value) for value in patient.trained]
    anchor = patient.bond.anchor.values
    noise = [size_of(v) * generator.normal(size=v.shape) for v in anchor]
    origin = [to_numpy(value) for value in anchor]
    mine = _log_probs(look, batch, start)
    for doubling in range(DOUBLINGS):
        size = FIRST_SIZE * 2**doubling
        moved = [v + size * n for v, n in zip(origin, noise)]
        theirs = _log_probs(look, batch, moved + start[len(moved) :])
        if np.mean(np.abs(mine - theirs)) >= LEAST_LOG_RATIO:
            break
    for value, new in zip(anchor, moved):
        value.assign(new)
    patient.keep()


def _any_batch(patient, generator):
    """Prompts with random completions, in the shape of a rollout."""
    token_ids = patient.prompts["token_ids"]
    samples = patient.bond.num_policy_samples + patient.bond.num_anchor_samples
    shape = (NUM_PROMPTS, samples, COMPLETION_LENGTH)
    completions = generator.choice(token_ids.reshape(-1), shape)
    lengths = patient.prompts["padding_mask"].sum(axis=1)
    return {
        "prompt_ids": token_ids.astype("int32"),
        "prompt_lengths": lengths.astype("int32"),
        "completion_ids": completions.astype("int32"),
        "mask": np.ones(shape, bool),
    }


def _log_probs(look, batch, values):
    return surrogate.token_log_probs(look(batch, values)[0], batch).sum(axis=-1)
