"""Trainers, data and a recorder for tests of completions that are given."""

import keras
import numpy as np
from keras import ops

import keras_bond
from keras_bond.callbacks import AnchorFixed
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

LENGTHS = {"max_prompt_length": 12, "max_completion_length": 4}
DATA = PROMPTS[:4]
# What a trainer without samples of the policy logs.
WALL_TIMES = {"step_time", "tokens_per_second"}
LOGGED = {
    "loss",
    "forward_kl_loss",
    "anchor/reward",
    "frac_reward_zero_std",
    "frac_prompts_unscored",
    "train/updated_fraction",
    "train/skipped_steps",
    "grad_norm",
    "learning_rate",
    *WALL_TIMES,
}


class Recorded:
    """Mixin that keeps the batches of the steps."""

    def collect(self, inputs, training):
        batch = super().collect(inputs, training)
        recorded = {
            k: np.array(ops.convert_to_numpy(v)) for k, v in batch.items()
        }
        self.__dict__.setdefault("batches", []).append(recorded)
        return batch


def make(
    kind=keras_bond.Bond,
    reward=length_reward,
    lora=False,
    compiled=None,
    **settings,
):
    policy = make_policy(num_layers=1, scale=2.0)
    if lora:
        keras.utils.set_random_seed(0)
        policy.backbone.enable_lora(2)
    kind = type(kind.__name__, (Recorded, kind), {})
    bond = kind(policy, reward, **{**LENGTHS, "seed": 3, **settings})
    bond.compile(
        keras.optimizers.SGD(0.1), **{**COMPILED_QUICKLY, **(compiled or {})}
    )
    return bond


def fit(bond, data, **options):
    """One step on all prompts in order; returns what is logged."""
    history = bond.fit(
        data,
        **{"batch_size": 4, "shuffle": False, "verbose": 0, **options},
        callbacks=[AnchorFixed()],
    )
    return {name: values[-1] for name, values in history.history.items()}


def given_by(bond):
    """The anchor's samples of the first step, as an engine would give them."""
    batch, p = bond.batches[0], bond.num_policy_samples
    ids, masks = (batch[k][:, p:] for k in ("completion_ids", "mask"))
    return [
        [row[kept].tolist() for row, kept in zip(*prompt)]
        for prompt in zip(ids, masks)
    ]


TEXTS = [["fox", "the dog", "a b"]] * 4
REWARDS = [[0.0, 2.0, 1.0]] * 4
FORWARD_ONLY = {"num_policy_samples": 0, "jeffreys_beta": 0}


def check_equal_steps(kind, settings):
    """A step on given completions is that of drawing the same ones.

    Loss, gradient and logs are equal, whatever `num_anchor_samples` is.
    """
    drawing = make(kind, **settings)
    logs = fit(drawing, DATA)
    is_free = issubclass(kind, keras_bond.Bond) and kind != keras_bond.JBond
    other = {"num_anchor_samples": 6} if is_free else {}
    reading = make(kind, **{**settings, **other})
    data = {"prompts": DATA, "completion_ids": given_by(drawing)}
    found = fit(reading, data)
    for name in WALL_TIMES:
        del found[name]
    for key, value in found.items():
        np.testing.assert_allclose(value, logs[key], 1e-4, 1e-6, err_msg=key)
    drawn, read = drawing.batches[0], reading.batches[0]
    for key in ("completion_ids", "mask", "ranks", "tie_breakers"):
        np.testing.assert_array_equal(drawn[key], read[key])
    for key in ("anchor_log_probs", "sampling_log_probs"):
        np.testing.assert_allclose(drawn[key], read[key], 0, 1e-5)
    weights = [
        values_of(b.policy.trainable_variables) for b in (drawing, reading)
    ]
    for expected, actual in zip(*weights):
        np.testing.assert_allclose(actual, expected, 0, 1e-6)
    moved = values_of(make(kind, **settings).policy.trainable_variables)
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(moved, weights[0]))
