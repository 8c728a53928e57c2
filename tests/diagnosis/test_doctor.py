"""The doctor passes what is sound, and each check finds its own disease."""

import dataclasses
import re

import keras
import numpy as np
import pytest
import scipy.stats

import keras_bond
from keras_bond import __main__ as command_line
from keras_bond import formulas
from keras_bond import rollouts
from keras_bond.diagnosis import Check
from keras_bond.diagnosis import examination
from keras_bond.diagnosis import gradients
from keras_bond.diagnosis import patient as patients
from keras_bond.diagnosis import sampling
from keras_bond.diagnosis import stand_ins
from keras_bond.diagnosis import updates
from keras_bond.diagnosis.distance import set_apart
from keras_bond.diagnosis.parallel_pass import ParallelPass
from keras_bond.training.weight_sets import Anchor
from tests.numeric import values_of
from tests.tiny import make_policy

FORWARD, _, LOG_RATIO, _, EXACT = gradients.STEPS


@pytest.fixture(scope="module")
def patient():
    """The tiny policy; compiled once for most tests."""
    return patients.Patient(stand_ins.tiny_policy("float32"))


@pytest.fixture(scope="module")
def look(patient):
    look = ParallelPass(patient)
    set_apart(patient, look)
    return look


@pytest.fixture(scope="module")
def lesson(patient, look):
    """A sound step."""
    return gradients.take_step(patient, FORWARD)


def assert_wrong(check, name, remedy):
    assert not check.passed, check
    assert re.search(name, check.name), check.name
    assert re.search(remedy, check.remedy), check.remedy


def change(monkeypatch, name, factor):
    """Multiplies what a formula returns."""
    sound = getattr(formulas, name)
    monkeypatch.setattr(formulas, name, lambda *a: factor * sound(*a))


def gradient_checks(patient, look, step):
    lesson = gradients.take_step(patient, step)
    return gradients.check_step(patient, look, step, lesson)


def test_a_sound_installation_passes_and_the_policy_stays(capsys):
    """All checks on a user's policy with a tokenizer and a frozen layer."""
    policy = make_policy(scale=3.0)
    policy.backbone.transformer_layers[1].trainable = False
    before = values_of(policy.variables)
    report = keras_bond.doctor(policy)
    assert report.passed, report
    assert len(report.checks) == 11
    for old, new in zip(before, values_of(policy.variables)):
        np.testing.assert_array_equal(old, new)
    printed = capsys.readouterr().out
    assert printed == f"{report}\n"
    first = printed.splitlines()[0]
    for name in ("keras_bond", "keras 3", "keras_hub", "float32", "cpu"):
        assert name in first
    assert keras.config.backend() in first


def test_a_lost_minus_and_a_lost_factor_show(patient, look, monkeypatch):
    change(monkeypatch, "weighted_likelihood_loss", -1.0)
    change(monkeypatch, "quantile_loss", 0.9)
    forward, quantile = gradient_checks(patient, look, FORWARD)
    assert_wrong(forward, "gradient of forward", "keras_bond/formulas")
    assert_wrong(quantile, "gradient of quantile", "keras_bond/formulas")


def test_the_wrong_sign_of_the_regulariser_shows(patient, look, monkeypatch):
    """Algorithm 2 prints it so."""
    change(monkeypatch, "score_function_kl_loss", -1.0)
    (check,) = gradient_checks(patient, look, LOG_RATIO)
    assert_wrong(check, "kl, log_ratio", "keras_bond/formulas")


def test_a_forgotten_tail_term_shows(patient, look, monkeypatch):
    monkeypatch.setattr(
        formulas,
        "full_vocabulary_kl_loss",
        lambda kls, log_probs, mask: formulas.sequence_log_probs(kls, mask),
    )
    (check,) = gradient_checks(patient, look, EXACT)
    assert_wrong(check, "kl, full_vocabulary", "keras_bond/formulas")


def test_a_part_that_the_gradient_lacks_shows():
    """Along the gradient alone, what is missing in it stays unseen."""
    start = [np.ones(50, "float32"), np.ones(50, "float32")]
    slopes = np.random.default_rng(0).normal(size=(2, 50))

    def loss(values):
        return float(sum(np.sum(s * v) for s, v in zip(slopes, values)))

    def error(gradient):
        part = slice(2)
        return gradients._relative_error(loss, start, gradient, part, 0.1)

    tolerance = gradients.TOLERANCES[True]
    assert error(list(slopes)) < tolerance
    assert error([slopes[0], np.zeros(50)]) > tolerance
    assert error([np.zeros(50), np.zeros(50)]) > tolerance
    assert not error([slopes[0], np.full(50, np.nan)]) <= tolerance


def test_diseases_of_the_update_show(patient, lesson, monkeypatch):
    """An anchor that follows twice; an optimizer that stands still; random
    numbers that depend on the place in the batch.
    """
    follow, uniform = Anchor.follow, rollouts.uniform

    def follow_twice(self, variables, num_updates):
        follow(self, variables, num_updates)
        self.updates_seen.assign(self.updates_seen - 1)
        return follow(self, variables, num_updates)

    def by_place(seed, purpose, rows, *shape):
        return uniform(seed, purpose, rows - rows[0], *shape)

    monkeypatch.setattr(Anchor, "follow", follow_twice)
    monkeypatch.setattr(updates, "PAPER_LEARNING_RATE", 0.0)
    monkeypatch.setattr(rollouts, "uniform", by_place)
    practice, refusal = updates.practise(patient)
    assert_wrong(
        updates.check_anchor(practice),
        "one anchor update for each optimizer update",
        "update_rate",
    )
    assert_wrong(
        updates.check_movement(practice, refusal),
        "moves the weights",
        "learning rate",
    )
    assert_wrong(
        sampling.check_seed(patient, lesson, practice), "same seed", "uniform"
    )
    frozen_moved = dataclasses.replace(practice, frozen_moved=1)
    assert not updates.check_movement(frozen_moved, None).passed


def test_bfloat16_variables_are_refused_with_the_way_out(monkeypatch):
    """Adam never moves them: the check says so, and nothing crashes."""
    patient = patients.Patient(stand_ins.tiny_policy("bfloat16"))

    def compile_only(optimizer, **settings):
        patient.bond.compile(optimizer)

    monkeypatch.setattr(patient, "learn", compile_only)
    practice, refusal = updates.practise(patient)
    check = updates.check_movement(practice, refusal)
    assert_wrong(check, "moves the weights", "mixed_bfloat16.*enable_lora")
    assert "cannot move bfloat16 variables" in check.detail


def test_a_sampler_off_by_its_temperature_shows(patient, look, lesson):
    decoder = patient.bond.decoder
    decoder.temperature = 1.0
    patient.bond._stages.clear()
    try:
        law = sampling.check_law(patient, look, lesson)
        drawn = gradients.take_step(patient, FORWARD)
    finally:
        decoder.temperature = patients.TEMPERATURE
        patient.bond._stages.clear()
    assert_wrong(law, "law of the policy", "temperature")
    decoding = sampling.check_decoding(patient, look, drawn)
    assert_wrong(decoding, "cached decoding", "key-value cache")


def test_weights_are_put_back_when_a_step_breaks(patient, monkeypatch):
    """After an update, while JAX holds the state outside the variables."""
    before = values_of(patient.bond.variables)

    def break_down(self, batch, logs=None):
        raise RuntimeError("out of order")

    monkeypatch.setattr(patients._Trace, "on_train_begin", lambda *a: None)
    monkeypatch.setattr(patients._Trace, "on_train_batch_end", break_down)
    with pytest.raises(RuntimeError, match="out of order"):
        patient.learn(keras.optimizers.SGD(1.0))
    for old, new in zip(before, values_of(patient.bond.variables)):
        np.testing.assert_array_equal(old, new)


def test_an_error_in_a_check_is_a_finding():
    (check,) = examination._guarded("law", lambda: 1 / 0)
    assert_wrong(check, "law", "latest releases")
    assert check.detail == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("degrees", [1, 10, 250])
def test_the_chi_square_limit_is_that_of_the_law(degrees):
    """No more false alarms than stated, and not far fewer."""
    limit = sampling.chi_square_limit(degrees)
    rate = scipy.stats.chi2.sf(limit, degrees)
    assert 0.1 < rate / sampling.FALSE_ALARM_RATE < 1.0


def test_an_impossible_token_fails_the_law():
    statistic, _ = sampling.chi_square(np.zeros(50, int), np.array([0.0, 1.0]))
    assert statistic == np.inf


def test_a_policy_and_a_dtype_do_not_go_together(patient):
    with pytest.raises(ValueError, match="leave it out.*Received: a policy"):
        keras_bond.doctor(patient.policy, dtype="float32")
    with pytest.raises(ValueError, match="`dtype` must be one of"):
        keras_bond.doctor(dtype="float16")


@pytest.mark.parametrize("passed", [True, False])
def test_the_exit_code_says_whether_all_is_well(passed, monkeypatch, capsys):
    def examine(policy):
        assert policy.backbone.dtype_policy.name == "mixed_bfloat16"
        yield Check("anchor", passed, "off by 0.5", "mend it")

    monkeypatch.setattr(examination, "_examine", examine)
    code = command_line.main(["doctor", "--dtype", "mixed_bfloat16"])
    assert code == (0 if passed else 1)
    printed = capsys.readouterr().out
    assert ("mend it" in printed) == (not passed)
    assert ("WRONG" in printed) == (not passed)


def test_without_a_command_the_usage_is_printed(capsys):
    assert command_line.main([]) == 0
    assert "doctor" in capsys.readouterr().out
