"""Completions that the data give, with every estimator and setting."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_bond
from examples import enumerable
from keras_bond.callbacks import AnchorEMA
from tests.numeric import values_of
from tests.tiny import length_reward
from tests.tiny import make_policy
from tests.training.given import DATA
from tests.training.given import FORWARD_ONLY
from tests.training.given import LENGTHS
from tests.training.given import REWARDS
from tests.training.given import TEXTS
from tests.training.given import check_equal_steps
from tests.training.given import fit
from tests.training.given import given_by
from tests.training.given import make

pytestmark = pytest.mark.one_backend

SETTINGS = {
    "pooled": (keras_bond.Bond, {"num_anchor_samples": 3}),
    "control variate": (
        keras_bond.Bond,
        {"num_anchor_samples": 4, "best_of_n": 3},
    ),
    "paper": (keras_bond.Bond, {"num_anchor_samples": 3, "estimator": "paper"}),
    "jbond": (keras_bond.JBond, {}),
    "lora": (
        keras_bond.Bond,
        {"num_anchor_samples": 3, "lora": True, "kl_weight": 0.1},
    ),
    "learned": (
        keras_bond.Bond,
        {"num_anchor_samples": 3, "estimator": "learned"},
    ),
    "bonbon": (keras_bond.BoNBoN, {"best_of_n": 3}),
    "raft": (
        keras_bond.Bond,
        {
            "num_anchor_samples": 3,
            "num_policy_samples": 0,
            "jeffreys_beta": 0,
            "estimator": "paper",
        },
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_on_given_completions_is_that_of_drawing_them(name):
    check_equal_steps(*SETTINGS[name])


def test_parts_of_a_batch_change_nothing():
    drawing = make(num_anchor_samples=3)
    fit(drawing, DATA)
    data = {"prompts": DATA, "completion_ids": given_by(drawing)}
    parts = {"rollout_batch_size": 2, "gradient_accumulation_steps": 2}
    whole, divided = make(), make(compiled=parts)
    losses = [fit(bond, data)["loss"] for bond in (whole, divided)]
    np.testing.assert_allclose(*losses, 0, 1e-5)
    for a, b in zip(*(values_of(x.policy.variables) for x in (whole, divided))):
        np.testing.assert_allclose(a, b, 0, 1e-6)


def test_rewards_come_from_the_data_or_from_the_reward():
    """Policy samples are scored in both cases, and `None` masks a prompt."""
    asked = []

    def reward(prompts, completions, color):
        asked.extend(zip(completions, color))
        return [2.0 * len(completion) for completion in completions]

    data = {"prompts": DATA, "completions": TEXTS, "color": ["red"] * 4}
    scored = make(reward=reward)
    logs = fit(scored, data)
    assert len(asked) == 4 * (4 + 3)
    assert {("fox", "red"), ("a b", "red")} < set(asked)
    assert logs["anchor/reward"] == pytest.approx(2 * (3 + 7 + 3) / 3)
    asked.clear()
    rewards = [[6.0, 14.0, 6.0]] * 3 + [[6.0, None, 6.0]]
    given = make(reward=reward)
    logs = fit(given, {**data, "rewards": rewards})
    assert len(asked) == 4 * 4 and ("a b", "red") not in asked
    assert logs["frac_prompts_unscored"] == 0.25
    np.testing.assert_array_equal(
        given.batches[0]["rewards"][:3], scored.batches[0]["rewards"][:3]
    )


def test_given_samples_estimate_best_of_n_of_the_initial_policy():
    """The weights of samples drawn elsewhere sum up to the exact Best-of-3.

    The bound is five standard errors.
    """
    world = enumerable.World(
        vocabulary_size=5, max_completion_length=2, num_prompts=2
    )
    policy = enumerable.make_policy(world, seed=0, num_layers=1)
    start = np.exp(enumerable.log_probs(world, policy))
    rewards = enumerable.make_rewards(world, seed=0, levels=4)
    listed, _ = world.completions()
    generator, copies, k = np.random.default_rng(0), 400, 6
    drawn = np.stack(
        [
            generator.choice(len(listed), (copies, k), p=p / p.sum())
            for p in start.astype("float64")
        ],
        axis=1,
    ).reshape(-1, k)
    own = np.tile(np.arange(2), copies)
    bond = keras_bond.Bond(
        policy,
        enumerable.Table(world, rewards),
        **world.lengths,
        **FORWARD_ONLY,
        best_of_n=3,
        seed=0,
    )
    seen = []
    bond.loss_terms = lambda batch, outputs: (
        seen.append(batch)
        or {"forward_kl_loss": (1.0, ops.sum(outputs["log_probs"], axis=1))}
    )
    bond.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    data = {
        "token_ids": world.prompt_ids()[own].tolist(),
        "completion_ids": listed[drawn].tolist(),
    }
    bond.evaluate(data, batch_size=len(own), verbose=0)
    weights = np.array(ops.convert_to_numpy(seen[0]["forward_weights"]))
    target = enumerable.best_of_n_distribution(start, rewards, 3)
    for i in range(2):
        sums = np.zeros((copies, len(listed)))
        rows = np.arange(copies)[:, None]
        np.add.at(sums, (rows, drawn[own == i]), weights[own == i])
        error = sums.std(axis=0) / np.sqrt(copies) + 1e-3
        assert np.all(np.abs(sums.mean(axis=0) - target[i]) < 5 * error)
    log_probs = seen[0]["anchor_log_probs"]
    np.testing.assert_allclose(
        np.exp(ops.convert_to_numpy(log_probs)),
        np.take_along_axis(start[own], drawn, axis=1),
        1e-4,
    )


def test_a_run_on_given_completions_resumes(tmp_path):
    """It is the same data only if completions and rewards are the same."""
    data = {"prompts": DATA, "completions": TEXTS, "rewards": REWARDS}
    whole, cut, rest = (make(**FORWARD_ONLY) for _ in range(3))
    options = {"batch_size": 2, "shuffle": True}
    fit(whole, data, epochs=2, **options)
    fit(cut, data, epochs=1, **options)
    cut.save_weights(tmp_path / "cut.weights.h5")
    rest.load_weights(tmp_path / "cut.weights.h5")
    fit(rest, data, epochs=2, initial_epoch=1, **options)
    for a, b in zip(*(values_of(x.policy.variables) for x in (whole, rest))):
        np.testing.assert_array_equal(a, b)
    others = [
        {**data, "completions": TEXTS[:3] + [["fox", "the dog", "a c"]]},
        {**data, "rewards": REWARDS[:3] + [[0.0, 2.0, 0.5]]},
        {"prompts": DATA},
        data,
    ]
    prints = [whole._to_batches(x, None, 2).fingerprint() for x in others]
    assert len(set(prints)) == 4


def test_the_anchor_must_be_what_drew_the_completions():
    data = {"prompts": DATA, "completions": TEXTS}
    bond = make()
    for callbacks in (None, [AnchorEMA(0.1)]):
        with pytest.raises(
            ValueError, match="AnchorFixed.*Received: an anchor"
        ):
            bond.fit(data, verbose=0, callbacks=callbacks)
    with pytest.raises(ValueError, match="the anchor must stay there"):
        bond.fit(DATA, validation_data=data, verbose=0)
    bond.fit(DATA, verbose=0, callbacks=[AnchorEMA(0.1)])
    for use in (bond.evaluate, lambda x: fit(bond, x)):
        with pytest.raises(ValueError, match="has moved .* 1 updates"):
            use(data)


def test_rewards_that_compare_need_all_samples():
    data = {"prompts": DATA, "completions": TEXTS, "rewards": REWARDS}
    bond = make(reward=[length_reward, length_reward])
    with pytest.raises(
        ValueError, match="cannot be compared.*Received: reward"
    ):
        fit(bond, data)
    fit(bond, {"prompts": DATA, "completions": TEXTS})
    fit(make(reward=[length_reward, length_reward], **FORWARD_ONLY), data)


@pytest.mark.parametrize("weight", ["jeffreys_beta", "kl_weight"])
def test_terms_of_policy_samples_need_some(weight):
    settings = {**FORWARD_ONLY, weight: 0.5}
    with pytest.raises(ValueError, match=f"{weight}=0 too. Received.*={0.5}"):
        make(**settings)


def test_other_methods_do_not_take_given_completions():
    data = {"prompts": DATA, "completions": TEXTS}
    bond, reinforce = make(), make(keras_bond.Reinforce)
    for use in (
        bond.generate,
        bond.draw_scored,
        lambda x: reinforce.fit(x, verbose=0),
        reinforce.evaluate,
    ):
        with pytest.raises(ValueError, match="leave the columns out.*rename"):
            use(data)


def test_the_setting_is_saved(tmp_path):
    settings = {"num_policy_samples": 0, "retokenize": True}
    bond = keras_bond.BoNBoN(
        make_policy(num_layers=1), length_reward, **LENGTHS, **settings
    )
    bond.save(tmp_path / "bond.keras")
    loaded = keras.saving.load_model(
        tmp_path / "bond.keras", custom_objects={"length_reward": length_reward}
    )
    assert loaded.retokenize and loaded.num_policy_samples == 0
    assert loaded.encoder.given_reader.least == loaded.best_of_n == 8
