"""The losses whose gradient a step must take, in NumPy and float64.

Written from the formulas and not from the code that is examined. What a step
must treat as constant, the coefficients, is given and stays as it is.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What is constant in a step.

    Attributes:
        forward, backward: arrays `(batch, P + k)`: coefficients of `log π`.
        quantile_labels: array `(batch, P + k, 2)`, empty if none are learned.
        kl: array `(batch, P)`: that of the score-function regularisers; or
            `None` for the exact KL, with
        anchor_log_softmax: `(batch, P, length, vocabulary)` and
        tails: `(batch, P, length)`: the KL of all later tokens.
    """

    forward: np.ndarray
    backward: np.ndarray
    quantile_labels: np.ndarray
    kl: np.ndarray | None = None
    anchor_log_softmax: np.ndarray | None = None
    tails: np.ndarray | None = None


def log_softmax(logits, temperature):
    """`log softmax(logits / T)` over the last axis, float64."""
    scaled = np.asarray(logits, "float64") / temperature
    scaled = scaled - scaled.max(axis=-1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))


def token_log_probs(log_probs, batch):
    """`log π(y_t)` `(batch, samples, length)`, 0 behind the end."""
    samples = log_probs.shape[1]
    ids = batch["completion_ids"][:, :samples, :, None]
    chosen = np.take_along_axis(log_probs, ids, axis=-1)[..., 0]
    return np.where(batch["mask"][:, :samples], chosen, 0.0)


def token_kls(log_probs, anchor_log_probs, mask):
    """`KL(π ‖ π_anchor)` of each next token, 0 behind the end."""
    differences = log_probs - anchor_log_probs
    return np.where(mask, np.sum(np.exp(log_probs) * differences, -1), 0.0)


def tails(kls):
    """The sum of all LATER entries along the last axis."""
    return kls.sum(axis=-1, keepdims=True) - np.cumsum(kls, axis=-1)


def policy_loss(log_probs, batch, frozen, jeffreys_beta, kl_weight):
    """`(1-β)·forward + β·backward + γ·KL` with frozen coefficients.

    Args:
        log_probs: array `(batch, P + k, length, vocabulary)`, log-softmax.
        batch: dict of arrays, what a step learned from.
        frozen: a `Frozen`.
        jeffreys_beta, kl_weight: float, see `keras_bond.Bond`.

    Returns:
        float, the mean over the prompts that were scored.
    """
    tokens = token_log_probs(log_probs, batch)
    sequences = tokens.sum(axis=-1)
    beta = jeffreys_beta
    weights = (1.0 - beta) * frozen.forward + beta * frozen.backward
    losses = -np.sum(weights * sequences, axis=1)
    if kl_weight:
        losses = losses + kl_weight * _kl(log_probs, tokens, batch, frozen)
    return float(np.mean(losses[batch["valid"]]))


def _kl(log_probs, tokens, batch, frozen):
    if frozen.kl is not None:
        p = frozen.kl.shape[1]
        return np.mean(frozen.kl * tokens[:, :p].sum(axis=-1), axis=1)
    p = frozen.tails.shape[1]
    mask = batch["mask"][:, :p]
    kls = token_kls(log_probs[:, :p], frozen.anchor_log_softmax, mask)
    by_token = kls + tokens[:, :p] * frozen.tails
    return np.mean(by_token.sum(axis=-1), axis=1)


def quantile_loss(logits, labels, valid):
    """Cross-entropy of the quantile model's answers, mean over all."""
    logits = np.asarray(logits, "float64")
    yes, no = -np.logaddexp(0.0, -logits), -np.logaddexp(0.0, logits)
    return float(-np.mean((labels * yes + (1.0 - labels) * no)[valid]))
