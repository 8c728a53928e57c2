"""Learning rates that damage a policy, or leave it where it is."""

import math
import warnings

import keras
import numpy as np
import pytest

import keras_bond
from keras_bond.training import learning_rates
from keras_bond.training.nothing_learned import NothingLearned
from keras_bond.training.nothing_learned import win_rate_error
from keras_bond.training.weight_sets import Anchor
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

pytestmark = pytest.mark.one_backend

LENGTHS = {"max_prompt_length": 12, "max_completion_length": 3}
SAID = "nothing was learned yet: raise the learning rate"


def cosine(start, peak):
    return keras.optimizers.schedules.CosineDecay(
        start, 100, warmup_target=peak, warmup_steps=10
    )


class Halving(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 1e-9 / (step + 1)


@pytest.fixture(scope="module")
def trainers():
    made = []
    for rank in (None, 2):
        policy = make_policy(num_layers=1)
        if rank:
            policy.backbone.enable_lora(rank)
        made.append(keras_bond.Bond(policy, length_reward, seed=0, **LENGTHS))
    return dict(zip(("all weights", "LoRA adapters"), made))


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(
    ("part", "rate", "said"),
    [
        ("all weights", 3e-6, None),
        ("all weights", 1e-3, "constant learning rate of 0.001 is far above"),
        ("all weights", cosine(1e-4, 1e-3), None),
        ("all weights", 1e-9, "at most 1e-09 moves nothing"),
        ("all weights", 0.0, "at most 0 moves nothing"),
        ("all weights", Halving(), None),
        ("all weights", 1e-4, "constant learning rate of 0.0001"),
        ("LoRA adapters", 1e-5, None),
        ("LoRA adapters", 1e-4, None),
        ("LoRA adapters", 2e-3, None),
        ("LoRA adapters", 1e-2, "far above the usual 0.001 of LoRA adapters"),
        ("LoRA adapters", 3e-6, "at most 3e-06 moves nothing: LoRA adapters"),
        ("LoRA adapters", cosine(0.0, 1e-3), None),
        ("LoRA adapters", cosine(0.0, 3e-6), "moves nothing"),
        (
            "LoRA adapters",
            keras.optimizers.schedules.PiecewiseConstantDecay(
                [9], [1e-6, 1e-7]
            ),
            "at most 1e-06 moves nothing",
        ),
    ],
)
def test_a_rate_is_judged_by_what_is_trained(trainers, part, rate, said, wrap):
    optimizer = keras.optimizers.Adam(rate)
    if wrap:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        trainers[part].compile(optimizer)
    texts = [str(w.message) for w in caught if "learning rate" in str(w)]
    assert len(texts) == (said is not None)
    assert said is None or said in texts[0]


def test_the_recipe_moves_from_the_first_update(trainers):
    with pytest.warns(UserWarning, match="far above") as caught:
        trainers["LoRA adapters"].compile(keras.optimizers.Adam(1e-2))
    (text,) = [str(w.message) for w in caught if "far above" in str(w)]
    recipe = text.split("`")[1]
    schedule = eval(recipe, {"keras": keras, "decay_steps": 500})
    rates = [float(schedule(step)) for step in (0, 1, 100)]
    np.testing.assert_allclose(rates, [1e-3, 1.09e-3, 1e-2], rtol=1e-5)
    assert learning_rates.is_rising(keras.optimizers.Adam(schedule))
    assert not learning_rates.is_rising(keras.optimizers.Adam(1e-3))


def test_reward_models_are_judged_too():
    model = make_policy(num_layers=1)
    model.backbone.enable_lora(2)
    reward_model = keras_bond.RewardModel(model)
    with pytest.warns(UserWarning, match="moves nothing"):
        reward_model.compile(keras.optimizers.Adam(1e-6))


def fit(trainer, rate, epochs=1, **options):
    trainer.compile(keras.optimizers.SGD(rate), run_eagerly=True)
    return trainer.fit(PROMPTS[:1] * 40, batch_size=2, epochs=epochs, **options)


@pytest.mark.filterwarnings("ignore:A learning rate of at most")
def test_a_run_that_does_not_move_says_so_once(trainers, capsys):
    fit(trainers["LoRA adapters"], 1e-9, epochs=2)
    assert capsys.readouterr().out.count(SAID) == 1
    fit(trainers["LoRA adapters"], 1e-9, verbose=0)
    assert SAID not in capsys.readouterr().out


class Trainer:
    """What `NothingLearned` reads of a trainer after 20 updates."""

    num_policy_samples = num_anchor_samples = 4

    def __init__(self, rate=1e-9, anchor=(0.02, 1), updates=20):
        self.optimizer = keras.optimizers.SGD(rate)
        self.updates = self.prompts_seen = 0
        self.anchor = Anchor([])
        self.anchor.set_rule(*anchor)
        self.after = updates

    def num_updates(self):
        return self.updates

    def sync(self):
        pass


NOTHING = {"kl": 1e-4, "kl_ref": 1e-4, "bond/win_rate": 0.51}
WITHOUT = {"kl": 1e-4, "bond/win_rate": 0.51}


@pytest.mark.parametrize(
    ("logs", "trainer", "is_said"),
    [
        (NOTHING, {}, True),
        ({**NOTHING, "kl_ref": 0.1}, {}, False),
        ({**NOTHING, "kl": -0.1}, {}, False),
        ({**NOTHING, "bond/win_rate": 0.56}, {}, False),
        ({**NOTHING, "kl": math.nan}, {}, False),
        ({**NOTHING, "bond/win_rate": math.nan}, {}, False),
        ({**NOTHING, "frac_prompts_unscored": 1.0}, {}, False),
        ({"kl": 0.0, "reward": 1.0}, {}, False),
        (NOTHING, {"updates": 19}, False),
        (NOTHING, {"rate": cosine(1e-7, 1e-6)}, False),
        (NOTHING, {"anchor": (1.0, 2)}, True),
        (WITHOUT, {}, True),
        (WITHOUT, {"anchor": (0.0, 1)}, True),
        (WITHOUT, {"anchor": (1.0, 32)}, True),
        (WITHOUT, {"anchor": (1.0, 2)}, False),
        (WITHOUT, {"anchor": (0.1, 1)}, False),
    ],
)
def test_when_it_says_so(logs, trainer, is_said, capsys):
    callback, model = NothingLearned(True), Trainer(**trainer)
    callback.set_model(model)
    callback.on_train_begin()
    model.updates = model.after
    model.prompts_seen = 100
    callback.on_epoch_end(0, logs)
    assert (SAID in capsys.readouterr().out) == is_said


def test_the_noise_of_a_win_rate():
    """It is that of random numbers in place of rewards."""
    rng = np.random.default_rng(0)
    policy, anchor = rng.random((20000, 4)), rng.random((20000, 2))
    wins = (policy[:, :, None] > anchor[:, None]).mean((1, 2))
    assert wins.std() == pytest.approx(win_rate_error(4, 2), rel=0.02)
