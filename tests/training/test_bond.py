"""`Bond`, its quantile models and the baselines, as a user runs them."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_bond
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

LENGTHS = {"max_prompt_length": 12, "max_completion_length": 5, "seed": 1}


def make(kind=keras_bond.Bond, policy=None, reward=length_reward, **choices):
    policy = policy or make_policy(num_layers=1)
    bond = kind(policy, reward, **{**LENGTHS, **choices})
    bond.compile(keras.optimizers.Adam(1e-5), **COMPILED_QUICKLY)
    return bond


def fit(bond, rule=None, x=PROMPTS, **kwargs):
    kwargs = {"batch_size": 4, "verbose": 0, **kwargs}
    return bond.fit(x, callbacks=rule and [rule], **kwargs).history


def weights_after(bond, **kwargs):
    fit(bond, keras_bond.callbacks.AnchorEMA(0.1), **kwargs)
    return values_of(bond.policy.trainable_variables)


@pytest.fixture(scope="module")
def bond():
    """Fitted with the default estimators and a fixed anchor."""
    bond = make(reference=True)
    bond.start = values_of(bond.policy.trainable_variables)
    bond.logs = fit(bond, keras_bond.callbacks.AnchorFixed())
    return bond


def test_a_fixed_anchor_stays_and_the_policy_moves(bond):
    for a, b in zip(bond.start, values_of(bond.anchor.values)):
        np.testing.assert_array_equal(a, b)
    after = values_of(bond.policy.trainable_variables)
    assert any((a != b).any() for a, b in zip(bond.start, after))
    # In the first step the policy is the anchor, and then not far from it.
    known = {k: v for k, v in bond.logs.items() if "correlation" not in k}
    assert np.isfinite(list(known.values())).all()
    assert bond.logs["train/updated_fraction"][0] > 0.5


def test_evaluate_reports_the_exact_kl_over_the_vocabulary(bond):
    """The mean over samples of `Σ_t KL_t`, here from the model's full logits.

    Pins: anchor and policy swapped, positions off by one, padding counted.
    """
    weights = np.random.default_rng(0)
    for variable in bond.policy.trainable_variables:
        noise = weights.normal(size=variable.shape) * 0.05
        variable.assign_add(noise.astype("float32"))
    batches = bond._to_batches(PROMPTS, None, 8)
    (inputs,) = batches[0]
    inputs = {k: ops.convert_to_tensor(v) for k, v in inputs.items()}
    inputs["index_in_batch"] = ops.arange(8, dtype="int32")
    bond._sources["test"] = batches
    rollout = {**inputs, **bond.draw(inputs, training=False)}
    scored = bond.score_with_anchor(rollout, training=False)
    kls = ops.convert_to_numpy(scored["anchor_kls"])
    assert kls.shape == (8, 4)
    samples, _ = bond.draw_scored(PROMPTS, 2)
    given = bond.kls_of(samples, "anchor", batch_size=5)
    assert given.shape == (16,)
    every = bond.kls_of(samples, "anchor", batch_size=10**30)
    np.testing.assert_allclose(every, given, rtol=1e-3, atol=1e-6)
    for size in ("a", 2.5, True, 0, -1, np.int64(4)):
        with pytest.raises(ValueError, match="`batch_size` must be an integer"):
            bond.kls_of(samples, "anchor", batch_size=size)
        with pytest.raises(ValueError, match="`batch_size` must be an integer"):
            bond.generate(PROMPTS, batch_size=size)
    for row in (0, 15):
        kept = samples.padding_mask[row]
        first = kept.sum() - len(samples.completion_ids[row]) - 1
        exact = exact_kl(bond, samples.token_ids[row][kept], first)
        np.testing.assert_allclose(given[row], exact, rtol=1e-3)
    for b in (0, 5):
        ids = ops.convert_to_numpy(rollout["token_ids"])[b, 1]
        kept = ops.convert_to_numpy(rollout["padding_mask"])[b, 1]
        first = int(inputs["prompt_lengths"][b]) - 1
        exact = exact_kl(bond, ids[kept], first)
        assert exact > 1e-3
        np.testing.assert_allclose(kls[b, 1], exact, rtol=1e-3)
    logs = bond.evaluate(PROMPTS, batch_size=8, return_dict=True, verbose=0)
    assert logs["kl"] == pytest.approx(kls.mean(), rel=1e-4)


def exact_kl(bond, ids, first):
    """KL to the anchor over the tokens behind position `first` of one row."""
    row = {"token_ids": ids[None], "padding_mask": np.ones((1, len(ids)), bool)}
    policy = log_softmax(bond.policy(row))
    with bond.using("anchor"):
        anchor = log_softmax(bond.policy(row))
    by_token = np.sum(np.exp(policy) * (policy - anchor), axis=-1)
    return by_token[first:-1].sum()


def log_softmax(logits):
    logits = ops.convert_to_numpy(logits)[0].astype("float64")
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.one_backend
def test_a_transformed_reward_trains_bit_for_bit_the_same(tmp_path):
    """Through a whole `fit`: rewards are only ever ranked."""
    bond = make()
    bond.save_weights(tmp_path / "start.weights.h5")
    plain = weights_after(bond)
    bond.load_weights(tmp_path / "start.weights.h5")
    bond.reward = lambda prompts, completions: [
        float(len(completion)) ** 2 - 5 for completion in completions
    ]
    squared = weights_after(bond)
    for a, b in zip(plain, squared):
        np.testing.assert_array_equal(a, b)


def test_learned_quantiles_learn_and_leave_the_policys_gradient_alone():
    """The classifier sits on the policy's backbone and must not train it.

    With `jeffreys_beta=0` nothing else depends on it, so that the policy moves
    as without it.
    """
    learned = make(estimator="learned", jeffreys_beta=0.0)
    plain = make(estimator="control_variate", jeffreys_beta=0.0)
    before = values_of(learned.quantile_model.logits.weights)
    pairs = zip(weights_after(learned), weights_after(plain))
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=1e-7)
    after = values_of(learned.quantile_model.logits.weights)
    assert (before[0] != after[0]).any()


def test_a_fitted_quantile_model_is_used_and_stays(tmp_path, bond):
    """Offline quantiles: drawn, fitted, frozen, saved with the trainer."""
    inputs, labels = bond.quantile_examples(PROMPTS, num_samples=4)
    assert labels.shape == (32, 2) and (labels[:, 0] >= labels[:, 1]).all()
    assert inputs["token_ids"].shape == inputs["padding_mask"].shape == (32, 17)
    model = keras_bond.QuantileModel(make_policy(seed=3, num_layers=1).backbone)
    with pytest.raises(ValueError, match="must be trained before it is used"):
        fit(make(estimator=model))
    model.trainable = True
    model.compile(keras.optimizers.Adam(1e-3), **COMPILED_QUICKLY)
    losses = model.fit(inputs, labels, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    frozen = values_of(model.variables)
    bond = make(estimator=model)
    fit(bond)
    for a, b in zip(frozen, values_of(model.variables)):
        np.testing.assert_array_equal(a, b)
    bond.save(tmp_path / "bond.keras")
    loaded = keras.saving.load_model(
        tmp_path / "bond.keras", custom_objects={"length_reward": length_reward}
    )
    for a, b in zip(frozen, values_of(loaded.quantile_model.variables)):
        np.testing.assert_array_equal(a, b)


def test_quantiles_of_the_policys_own_backbone_are_refused(policy):
    """It would be frozen together with them."""
    model = keras_bond.QuantileModel(policy.backbone)
    model.batches_seen.assign(1)
    with pytest.raises(ValueError, match="must not share variables"):
        make(policy=policy, estimator=model)
    with pytest.raises(TypeError, match="`estimator` must be a string, or"):
        make(policy=policy, estimator=lambda inputs: 0.5)


@pytest.mark.parametrize(
    "kind, choices",
    [
        (keras_bond.Bond, {"best_of_n": 4, "estimator": "monte_carlo"}),
        (keras_bond.Bond, {"estimator": "learned", "kl_weight": 0.2}),
        (keras_bond.JBond, {"jeffreys_beta": 0.25, "reference": True}),
        (keras_bond.Reinforce, {"kl_weight": 0.5}),
        (keras_bond.BoNBoN, {"best_of_n": 3, "sft_weight": 0.1}),
    ],
)
def test_configs_make_the_same_trainer_again(kind, choices):
    trainer = make(kind, **choices)
    with keras.saving.custom_object_scope({"length_reward": length_reward}):
        again = kind.from_config(trainer.get_config())
    first, second = trainer.get_config(), again.get_config()
    # Names of layers are numbered on.
    del first["policy"], second["policy"]
    assert first == second
    for name, value in choices.items():
        assert first[name] == value


def test_a_run_with_learned_quantiles_resumes_bit_for_bit(tmp_path):
    """The classifier, its optimizer slots and the policy's, all together."""
    choices = {"estimator": "learned", "kl_weight": 0.1}
    first = make(**choices)
    fit(first, epochs=1)
    first.save_weights(tmp_path / "half.weights.h5")
    fit(first, epochs=2, initial_epoch=1)
    second = make(**choices)
    second.load_weights(tmp_path / "half.weights.h5")
    fit(second, epochs=2, initial_epoch=1)
    one, other = (
        [*bond.trainable_variables, *bond.optimizer.variables]
        for bond in (first, second)
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(*values_of([a, b]), a.path)


@pytest.mark.parametrize("kind", [keras_bond.Reinforce, keras_bond.BoNBoN])
def test_baselines_train_against_a_fixed_reference(kind, capsys):
    """They log their own loss and announce no anchor rule."""
    logs = fit(make(kind))
    assert "adds keras_bond.callbacks" not in capsys.readouterr().out
    assert np.isfinite(logs["loss"]).all()
    assert "bond/penalized_fraction" not in logs
    assert logs["train/updated_fraction"][0] > 0.5


def test_a_single_prompt_is_enough_with_its_own_baseline():
    """A batch of one has no other prompts; the samples have each other."""
    logs = fit(make(), x=PROMPTS[:1], batch_size=1)
    assert np.isfinite(logs["loss"]).all()
    with pytest.raises(ValueError, match="at least 2 prompts"):
        fit(make(keras_bond.JBond), x=PROMPTS[:1], batch_size=1)


@pytest.mark.parametrize(
    "kind, arguments, text",
    [
        (keras_bond.Reinforce, {"kl_weight": -1}, "`kl_weight` must be"),
        (keras_bond.Reinforce, {"num_policy_samples": 1}, "at least 2"),
        (keras_bond.Reinforce, {"baseline": "none"}, "`baseline` must be"),
        (keras_bond.BoNBoN, {"sft_weight": 2}, "`sft_weight` must be between"),
        (keras_bond.BoNBoN, {"best_of_n": 1}, "`best_of_n` must be an integer"),
    ],
)
def test_wrong_arguments_of_baselines_are_named(policy, kind, arguments, text):
    with pytest.raises(ValueError, match=text):
        make(kind, policy, **arguments)
