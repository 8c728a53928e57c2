"""The card's rates, the doctor, and the precision of its products."""

import contextlib
import dataclasses
import os

import numpy as np

from gpu_parts.figures import figure
from gpu_parts.figures import rates
from gpu_parts.shapes import QUICK
from gpu_parts.shapes import build_policy

# Bytes and bfloat16 FLOP (without sparsity) per second, from data sheets.
CARDS = {
    "H200": (4.8e12, 989e12),
    "H100": (3.35e12, 989e12),
    "A100": (2.0e12, 312e12),
    "L40": (0.86e12, 181e12),
    "L4": (0.30e12, 121e12),
    "T4": (0.32e12, 65e12),
    "V100": (0.9e12, 125e12),
}


def run_machine(quick):
    from keras_bond import backend

    card, memory = backend.device_memory()
    copied, product = rates(quick)
    figure("machine", "memory", memory, "bytes", card=card)
    figure("machine", "copy", copied, "bytes/s")
    figure("machine", "bfloat16 product", product, "FLOP/s")
    known = [name for name in CARDS if name in card]
    if known:
        sheet = dict(zip(("bytes/s", "FLOP/s"), CARDS[known[0]]))
        for unit, value in sheet.items():
            figure("machine", f"data sheet of {known[0]}", value, unit)


def run_doctor(quick):
    import keras_bond

    for dtype in ("float32", "mixed_bfloat16"):
        report = keras_bond.doctor(dtype=dtype, verbose=False)
        details = {check.name: check.detail for check in report.checks}
        figure("doctor", dtype, report.passed, "passed", **details)


def run_precision(quick):
    """Log-probabilities of a float32 network whose logits are not small."""
    import keras

    shape = dataclasses.replace(QUICK, width=64 if quick else 512)
    policy = build_policy(shape, scale=0.2)
    ids = np.random.default_rng(0).integers(2, shape.vocabulary, (8, 64))
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}

    def log_probs():
        hidden = policy.backbone(inputs)
        logits = policy.backbone.token_embedding(hidden, reverse=True)
        found = keras.ops.log_softmax(logits, axis=-1)
        return keras.ops.convert_to_numpy(found).astype("float64")

    by_default = log_probs()
    with full_precision():
        exact = log_probs()
    kl = (np.exp(exact) * (exact - by_default)).sum(axis=-1).mean()
    largest = float(np.abs(exact - by_default).max())
    figure("precision", "largest difference to the default", largest, "nats")
    figure("precision", "KL to the default", float(kl), "nats/token")


def full_precision():
    """A context without the short floats that tensor cores multiply."""
    if os.environ["KERAS_BACKEND"] == "jax":
        import jax

        return jax.default_matmul_precision("highest")
    import torch

    @contextlib.contextmanager
    def highest():
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    return highest()
