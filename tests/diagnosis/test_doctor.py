"""The doctor passes what is right, and each of its checks can fail."""

import random
import re
import warnings

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
from keras_bond.diagnosis import testbed
from tests.numeric import values_of
from tests.tiny import make_policy


@pytest.fixture(scope="module")
def bed():
    """The tiny policy; compiled once for most tests."""
    return testbed.Testbed(fixtures.tiny_policy("float32"))


@pytest.fixture(scope="module")
def record(bed):
    """A correct step."""
    return bed.train_step()


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
    printed = capsys.readouterr().out.rstrip("\n")
    assert printed == str(report)
    versions = printed.splitlines()[0]
    for name in ("keras_bond", "keras 3", "keras_hub", "float32", "cpu"):
        assert name in versions
    assert keras.config.backend() in versions


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
    wrong = record._replace(gradient=change(record.gradient))
    check = checks.check_gradient(bed, wrong)
    assert_wrong(check, "gradient of the loss", "does not descend the loss")


def test_the_right_gradient_passes(bed, record):
    check = checks.check_gradient(bed, record)
    assert check.passed, check


@pytest.mark.one_backend
def test_a_dropped_term_shows(bed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(bed.trainer, "kl_weight", 0.0)
        without = bed.train_step()
    check = checks.check_gradient(bed, without)
    assert_wrong(check, "gradient of the loss", "does not descend the loss")


@pytest.mark.one_backend
def test_a_large_policy_is_told_from_a_wrong_one():
    """Its losses round more, and most of its weights hardly matter."""
    policy = make_policy(
        vocabulary_size=2048,
        num_layers=8,
        hidden_dim=128,
        intermediate_dim=256,
        scale=0.5,
    )
    # Its vocabulary is larger than the tokenizer's.
    policy.preprocessor = None
    bed = testbed.Testbed(policy)
    record = bed.train_step()
    for check in diagnose.CHECKS.values():
        found = check(bed, record)
        assert found.passed, found
    embedding, *blocks = record.gradient
    for gradient in (
        [2.0 * g for g in record.gradient],
        [0.0 * embedding, *blocks],
    ):
        wrong = record._replace(gradient=gradient)
        assert checks.check_gradient(bed, wrong).passed is False


@pytest.mark.one_backend
@pytest.mark.parametrize("kind", ["bfloat16", "int8", "large logits"])
def test_no_false_alarm_where_little_is_precise(kind):
    """Rounded numbers, and adapters that start at 0."""
    dtype = "bfloat16" if kind == "bfloat16" else "float32"
    policy = fixtures.tiny_policy(dtype)
    if kind == "large logits":
        policy.backbone.layer_norm.scale.assign([50.0] * 16)
    if kind == "int8":
        with warnings.catch_warnings():
            # Keras names every layer that has no kernel.
            warnings.simplefilter("ignore")
            policy.backbone.quantize("int8")
    policy.backbone.enable_lora(2)
    report = keras_bond.doctor(policy, verbose=False)
    assert len(report.checks) == 4
    assert report.passed, report


def rounded_wave(slope, curvature, noise, seed):
    """A loss as a function of a step, with rounding errors."""
    generator = np.random.default_rng(seed)

    def loss(step):
        wave = np.sin(curvature * step) / curvature
        return 10.0 + slope * wave + noise * generator.normal()

    return loss


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-4, 3e-2])
@pytest.mark.parametrize("curvature", [1.0, 30.0, 100.0])
def test_no_false_alarm_whatever_the_noise_and_the_curvature(noise, curvature):
    """Rounding errors of the loss, of any size, only widen the tolerance."""
    for seed in range(20):
        loss = rounded_wave(3.0, curvature, noise, seed)
        passed, detail = checks.compare(loss, 3.0, 1e-7)
        assert passed is not False, detail
        if noise <= 1e-4:
            assert passed, detail
            assert checks.compare(loss, 1.5, 1e-7)[0] is False
        if noise <= 1e-6:
            assert checks.compare(loss, 2.85, 1e-7)[0] is False
        if noise == 3e-2:
            assert passed is None and "not precise enough to tell" in detail


@pytest.mark.parametrize("slope", [0.0, 1e-11])
def test_a_loss_without_a_slope_tells_nothing(slope):
    """A policy that is certain of every token has a gradient of about 0."""
    assert checks.compare(lambda step: 1.0, slope, 1e-7)[0] is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_wrong(bad):
    assert checks.compare(lambda step: bad, 1.0, 1e-7)[0] is False

    def overflowing(step):
        return step if abs(step) < 0.05 else bad

    assert checks.compare(overflowing, 1.0, 1e-7)[0]


def test_an_optimizer_that_stands_still_shows(bed, record):
    still = checks.check_update(bed, record._replace(after=record.before))
    assert "Adam moves 0%" in still.detail
    assert_wrong(still, "update", "learning rate")
    # A partner of adapters that start at 0 has no gradient yet.
    nothing, *others = record.gradient
    partial = [0.0 * nothing, *others]
    half = [record.before[0], *record.after[1:]]
    change = record._replace(gradient=partial, after=half)
    assert checks.check_update(bed, change).passed
    nowhere = [0.0 * gradient for gradient in record.gradient]
    assert not checks.check_update(
        bed, change._replace(gradient=nowhere)
    ).passed


def test_bfloat16_variables_are_refused_with_the_way_out():
    """Adam never moves them: the check says so, and nothing crashes."""
    (check,) = keras_bond.doctor(dtype="bfloat16", verbose=False).checks
    assert not check.passed
    assert "cannot move bfloat16 variables" in check.detail
    assert re.search("mixed_bfloat16.*enable_lora", check.detail)


@pytest.mark.one_backend
def test_a_sampler_off_by_its_temperature_shows(bed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(bed.trainer.decoder, "temperature", 1.0)
        drawn = bed.train_step()
        sampling = checks.check_sampling(bed, drawn)
    decoding = checks.check_decoding(bed, drawn)
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
    (check,) = diagnose._run_checks(bed)
    assert check.detail == "RuntimeError: out of order"
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


def test_float32_products_are_told_from_rounded_ones(bed, monkeypatch):
    """TF32 on a GPU, bfloat16 on a TPU: other tolerances, no false alarm."""
    assert testbed.precision_of(bed.policy) < 1e-6
    matmul = keras.ops.matmul

    def rounded(left, right):
        low = [keras.ops.cast(x, "bfloat16") for x in (left, right)]
        return keras.ops.cast(matmul(*low), "float32")

    monkeypatch.setattr(keras.ops, "matmul", rounded)
    assert testbed.precision_of(bed.policy) > 1e-3


def test_a_policy_and_a_dtype_do_not_go_together(bed):
    with pytest.raises(ValueError, match="leave it out.*Received: a policy"):
        keras_bond.doctor(bed.policy, dtype="float32")
    with pytest.raises(ValueError, match="`dtype` must be one of"):
        keras_bond.doctor(dtype="float16")


@pytest.mark.parametrize("passed", [True, False, None])
def test_the_exit_code_says_whether_all_is_well(passed, monkeypatch, capsys):
    def run_checks(bed):
        assert bed.policy.backbone.dtype_policy.name == "mixed_bfloat16"
        yield Check("update", passed, "off by 0.5", "fix it")

    monkeypatch.setattr(diagnose, "_run_checks", run_checks)
    code = command_line.main(["doctor", "--dtype", "mixed_bfloat16"])
    assert code == (1 if passed is False else 0)
    printed = capsys.readouterr().out
    assert ("fix it" in printed) == (passed is False)
    summary = {
        True: "1 of 1 checks passed.",
        False: "0 of 1 checks passed; WRONG: update.",
        None: "0 of 1 checks passed; not precise enough to tell: update.",
    }
    assert printed.splitlines()[-1] == summary[passed]


def test_without_a_command_the_usage_is_printed(capsys):
    assert command_line.main([]) == 0
    assert "doctor" in capsys.readouterr().out
