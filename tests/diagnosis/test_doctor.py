"""The doctor passes what is right, and each of its checks can fail."""

import random
import re

import keras
import numpy as np
import pytest
import scipy.stats

import keras_bond
from keras_bond import __main__ as command_line
from keras_bond.diagnosis import Check
from keras_bond.diagnosis import checks
from keras_bond.diagnosis import diagnose
from keras_bond.diagnosis import fixtures
from keras_bond.diagnosis import report as reports
from keras_bond.diagnosis import testbed
from keras_bond.training.weight_sets import Anchor
from tests.numeric import values_of
from tests.tiny import make_policy


@pytest.fixture(scope="module")
def bed():
    """The tiny policy; compiled once for most tests."""
    return testbed.Testbed(fixtures.tiny_policy("float32"))


@pytest.fixture(scope="module")
def record(bed):
    """A correct step."""
    return checks.take_gradient_step(bed)


def assert_wrong(check, name, remedy):
    assert not check.passed, check
    assert re.search(name, check.name), check.name
    assert re.search(remedy, check.remedy), check.remedy


def test_a_sound_installation_passes_and_all_stays_as_it_was(capsys):
    """All checks on a user's policy with a tokenizer and a frozen layer."""
    policy = make_policy(scale=3.0)
    policy.backbone.transformer_layers[1].trainable = False
    policy.compile(keras.optimizers.Adam(1e-3))
    policy.optimizer.build(policy.trainable_variables)
    variables = [*policy.variables, *policy.optimizer.variables]
    before = values_of(variables)
    states = random.getstate(), np.random.get_state()[1].tolist()
    report = keras_bond.doctor(policy)
    assert report.passed, report
    assert len(report.checks) == 4
    for old, new in zip(before, values_of(variables)):
        np.testing.assert_array_equal(old, new)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    versions, time, *rest = capsys.readouterr().out.splitlines()
    assert "\n".join([versions, *rest]) == str(report)
    assert re.fullmatch(r"The checks take about \d+ seconds\.", time)
    for name in ("keras_bond", "keras 3", "keras_hub", "float32", "cpu"):
        assert name in versions
    assert keras.config.backend() in versions


def test_a_large_policy_takes_minutes(bed, monkeypatch):
    monkeypatch.setattr(diagnose, "SECONDS_PER_PARAMETER", 0.1)
    assert "minutes on a CPU" in diagnose._expected_time(bed.policy)


def with_gradient(record, change):
    """The record of a step along another gradient."""
    before, after = record.trained
    gradient = [(x - y) / checks.RATE for x, y in zip(before, after)]
    pairs = zip(before, change(gradient))
    return record._replace(
        trained=(before, [x - checks.RATE * g for x, g in pairs])
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda gradient: [-g for g in gradient],
        lambda gradient: [0.95 * g for g in gradient],
        lambda gradient: [0.0 * g for g in gradient],
        lambda gradient: [0.0 * gradient[0], *gradient[1:]],
        lambda gradient: [*gradient[:-1], np.nan * gradient[-1]],
    ],
    ids=["sign", "scale", "nothing", "one variable", "NaN"],
)
def test_a_wrong_gradient_shows(bed, record, change):
    check = checks.check_gradient(bed, with_gradient(record, change), True)
    assert_wrong(check, "gradient of the loss", "does not descend the loss")


def test_the_right_gradient_passes(bed, record):
    check = checks.check_gradient(
        bed, with_gradient(record, lambda gradient: gradient), True
    )
    assert check.passed, check


def test_a_dropped_term_shows(bed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(bed.trainer, "kl_weight", 0.0)
        without = checks.take_gradient_step(bed)
    check = checks.check_gradient(bed, without, True)
    assert_wrong(check, "gradient of the loss", "does not descend the loss")


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-5])
@pytest.mark.parametrize("curvature", [1.0, 30.0, 100.0])
def test_no_false_alarm_whatever_the_noise_and_the_curvature(noise, curvature):
    """Rounding errors of the loss, of any size, only widen the tolerance."""
    for seed in range(20):
        generator = np.random.default_rng(seed)

        def loss(step, generator=generator):
            wave = np.sin(curvature * step) / curvature
            return 10.0 + 3.0 * wave + noise * generator.normal()

        error, uncertainty = checks.compare(loss, 3.0)
        assert error <= 0.01 + 3.0 * uncertainty
        if noise <= 1e-6:
            # An error of 5 % would be seen.
            assert 0.01 + 3.0 * uncertainty < 0.04


def test_a_loss_without_a_slope_is_no_false_alarm():
    """A policy that is certain of every token has a gradient of about 0."""
    error, uncertainty = checks.compare(lambda step: 1.0, 1e-11)
    assert error <= 3.0 * uncertainty


def test_an_optimizer_that_stands_still_and_an_anchor_that_runs_show(
    bed, monkeypatch
):
    follow = Anchor.follow

    def follow_twice(self, variables, num_updates):
        follow(self, variables, num_updates)
        self.updates_seen.assign(self.updates_seen - 1)
        return follow(self, variables, num_updates)

    monkeypatch.setattr(Anchor, "follow", follow_twice)
    monkeypatch.setattr(checks, "PAPER_LEARNING_RATE", 0.0)
    wrong = checks.take_update(bed)
    assert "Adam moves 0%" in checks.check_update(wrong).detail
    # Each of the two is enough, and they are all that is wrong.
    (old, _), (_, policy) = wrong.anchor, wrong.trained
    rate = checks.UPDATE_RATE
    new = [(1.0 - rate) * a + rate * p for a, p in zip(old, policy)]
    still = wrong._replace(anchor=(old, new))
    trained = [values - 1.0 for values in policy], policy
    wrong_anchor = wrong._replace(trained=trained)
    assert_wrong(checks.check_update(still), "update", "learning rate")
    assert_wrong(checks.check_update(wrong_anchor), "update", "`update_rate`")
    right = still._replace(trained=trained)
    assert checks.check_update(right).passed
    moved = [values + 1.0 for values in right.frozen[1]]
    frozen = right._replace(frozen=(right.frozen[0], moved))
    assert not checks.check_update(frozen).passed


def test_bfloat16_variables_are_refused_with_the_way_out():
    """Adam never moves them: the check says so, and nothing crashes."""
    bed = testbed.Testbed(fixtures.tiny_policy("bfloat16"))
    check = diagnose._guarded("update", lambda: checks.take_update(bed))
    assert not check.passed
    assert "cannot move bfloat16 variables" in check.detail
    assert re.search("mixed_bfloat16.*enable_lora", check.detail)


def test_a_sampler_off_by_its_temperature_shows(bed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(bed.trainer.decoder, "temperature", 1.0)
        drawn = checks.take_gradient_step(bed)
        sampling = checks.check_sampling(bed, drawn)
    decoding = checks.check_decoding(bed, drawn, True)
    # What was compiled goes, too.
    bed.trainer.compile(keras.optimizers.SGD(1e-6))
    assert_wrong(sampling, "sampled distribution", "temperature")
    assert_wrong(decoding, "cached decoding", "key-value cache")


def test_weights_are_put_back_when_a_step_breaks(bed, monkeypatch):
    """After an update, while JAX holds the state outside the variables."""
    before = values_of(bed.trainer.variables)

    class Breaking(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("out of order")

    monkeypatch.setattr(
        bed.trainer, "complete_callbacks", lambda callbacks: [Breaking()]
    )
    with pytest.raises(RuntimeError, match="out of order"):
        bed.train_briefly(keras.optimizers.SGD(1.0), 8)
    for old, new in zip(before, values_of(bed.trainer.variables)):
        np.testing.assert_array_equal(old, new)


def test_an_error_in_a_check_is_a_finding():
    check = diagnose._guarded("update", lambda: 1 / 0)
    assert_wrong(check, "update", "latest releases")
    assert check.detail == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("degrees", [1, 10, 250])
def test_the_chi_square_limit_is_that_of_the_distribution(degrees):
    """No more false alarms than stated, and not far fewer."""
    limit = checks.chi_square_limit(degrees)
    rate = scipy.stats.chi2.sf(limit, degrees)
    assert 0.1 < rate / checks.CHI_SQUARE_LEVEL < 1.0


@pytest.mark.parametrize("probability", [0.04, 0.1, 0.3, 0.5])
def test_small_counts_raise_no_more_alarms_than_the_report_says(probability):
    """The worst case is one token that is expected ten times."""
    counts = np.arange(checks.NUM_DRAWS + 1)
    tokens = [np.repeat([0, 1], [n, counts[-1] - n]) for n in counts]
    probs = np.array([probability, 1.0 - probability])
    found = [checks.chi_square(drawn, probs) for drawn in tokens]
    alarms = [s > checks.chi_square_limit(degrees) for s, degrees in found]
    chances = scipy.stats.binom(counts[-1], probability).pmf(counts)
    assert 0 < np.sum(chances[alarms]) < 1e-4


def test_an_impossible_token_fails_the_test_of_the_distribution():
    statistic, _ = checks.chi_square(np.zeros(50, int), np.array([0.0, 1.0]))
    assert statistic == np.inf


def test_float32_products_are_told_from_rounded_ones(monkeypatch):
    """TF32 on a GPU, bfloat16 on a TPU: other tolerances, no false alarm."""
    assert reports.measure_product_error() < reports.MOST_FLOAT32_ERROR
    matmul = keras.ops.matmul

    def rounded(left, right):
        low = [keras.ops.cast(x, "bfloat16") for x in (left, right)]
        return keras.ops.cast(matmul(*low), "float32")

    monkeypatch.setattr(keras.ops, "matmul", rounded)
    assert reports.measure_product_error() > reports.MOST_FLOAT32_ERROR


def test_a_policy_and_a_dtype_do_not_go_together(bed):
    with pytest.raises(ValueError, match="leave it out.*Received: a policy"):
        keras_bond.doctor(bed.policy, dtype="float32")
    with pytest.raises(ValueError, match="`dtype` must be one of"):
        keras_bond.doctor(dtype="float16")


@pytest.mark.parametrize("passed", [True, False])
def test_the_exit_code_says_whether_all_is_well(passed, monkeypatch, capsys):
    def run_checks(policy, has_float32):
        assert policy.backbone.dtype_policy.name == "mixed_bfloat16"
        yield Check("update", passed, "off by 0.5", "fix it")

    monkeypatch.setattr(diagnose, "_run_checks", run_checks)
    code = command_line.main(["doctor", "--dtype", "mixed_bfloat16"])
    assert code == (0 if passed else 1)
    printed = capsys.readouterr().out
    assert ("fix it" in printed) == (not passed)
    assert ("WRONG" in printed) == (not passed)


def test_without_a_command_the_usage_is_printed(capsys):
    assert command_line.main([]) == 0
    assert "doctor" in capsys.readouterr().out
