"""Training on completions that the data give, on every backend."""

import numpy as np
import pytest

import keras_bond
from keras_bond.rollouts import Decoder
from tests.training.given import DATA
from tests.training.given import FORWARD_ONLY
from tests.training.given import LOGGED
from tests.training.given import REWARDS
from tests.training.given import TEXTS
from tests.training.given import check_equal_steps
from tests.training.given import fit
from tests.training.given import make


@pytest.fixture
def no_decoding(monkeypatch):
    """Fails where something is decoded, or compiled to be."""

    def decode(*arguments, **options):
        raise AssertionError("decoded")

    monkeypatch.setattr(Decoder, "__call__", decode)


def never(prompts, completions):
    raise AssertionError("scored")


LORA = {"num_anchor_samples": 3, "lora": True, "kl_weight": 0.1}


def test_a_step_on_given_completions_is_that_of_drawing_them():
    check_equal_steps(keras_bond.Bond, LORA)


@pytest.mark.parametrize(
    ("kind", "settings", "names"),
    [
        (
            keras_bond.Bond,
            {**FORWARD_ONLY, "best_of_n": 3, "reference": True},
            set(),
        ),
        pytest.param(
            keras_bond.BoNBoN,
            {"num_policy_samples": 0, "best_of_n": 2},
            {"sft_loss", "contrast_loss"},
            marks=pytest.mark.one_backend,
        ),
    ],
)
def test_forward_kl_of_given_completions_decodes_nothing(
    no_decoding, kind, settings, names
):
    """Nor does it score, and it logs no number of the policy's samples."""
    bond = make(kind, never, **settings)
    data = {"prompts": DATA, "completions": TEXTS, "rewards": REWARDS}
    logs = fit(bond, data, validation_data=data, epochs=2)
    trained = {name for name in logs if not name.startswith("val_")}
    expected = (LOGGED - {"forward_kl_loss"} if names else LOGGED) | names
    assert trained == expected
    assert all(np.isfinite(value) for value in logs.values())
    assert logs["anchor/reward"] == 1.0
    evaluated = bond.evaluate(data, verbose=0, return_dict=True)
    assert {name for name in evaluated if name.startswith("bond/")} == set()
    # The policy has moved; what drew the completions has not.
    for batch in bond.batches[1:]:
        np.testing.assert_allclose(
            batch["anchor_log_probs"], bond.batches[0]["anchor_log_probs"], 1e-5
        )
