"""The benchmark of the estimators in small: it runs, and it notices.

JAX only: the benchmark compiles its draws with it.
"""

import csv
import itertools
import pathlib
import sys
import types

import keras
import numpy as np
import pytest

sys.path.append(
    str(pathlib.Path(__file__).parents[2] / "integration" / "benchmarks")
)

import estimator_choices
import estimator_gradients
import estimator_kl
import estimator_learning
import estimator_moments
import estimator_world
import estimators
import jax
import jax.numpy as jnp

import keras_bond

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="the benchmark runs on JAX"
)


def test_it_writes_a_table_pictures_and_numbers(tmp_path, monkeypatch, capsys):
    """False alarm: below 1e-4, and the seeds are fixed."""
    monkeypatch.setattr(estimator_kl, "SETTINGS", ((3, 0.2),))
    monkeypatch.setattr(estimator_kl, "POLICY_SAMPLES", (1,))
    monkeypatch.setattr(estimator_gradients, "offered", some_of_the_offered)
    monkeypatch.setattr(
        estimator_learning,
        "CONTESTANTS",
        estimator_learning.CONTESTANTS[-1:],
    )
    arguments = "--learning --draws 100 --splits 1+2 --budgets 16 32 16"
    output = ["--output", str(tmp_path)]
    assert estimators.main([*arguments.split(), *output])
    table = (tmp_path / "table.md").read_text()
    for name in ("control_variate", "full_vocabulary", "| pooled | 4+4 |"):
        assert name in table
    assert table in capsys.readouterr().out
    with open(tmp_path / "gradients.csv") as file:
        rows = list(csv.DictReader(file))
    paper = [row for row in rows if row["name"] == "paper"]
    assert {float(row["ratio_prompts"]) for row in paper} == {1.0}
    assert {row["scene"] for row in rows} == set(estimator_world.make_scenes())
    for name in ("kl.csv", "learning.csv", "learning.png"):
        assert (tmp_path / name).stat().st_size > 100


def some_of_the_offered(split):
    """Compiling all of them takes seconds."""
    return [
        estimator
        for estimator in estimator_choices.offered(split)
        if estimator.part != "backward" or "pairs, random" in estimator.name
    ]


def test_it_notices_a_wrong_mean():
    """Midrank ties measured against what strict ties are to give."""
    scene = estimator_world.make_scenes()["tied"]
    midrank, strict = (
        estimator_choices.make("backward", ties, (4, 2), ties=ties)
        for ties in ("midrank", "strict")
    )

    def gradients(key, scene):
        batch = estimator_world.draw(key, scene, 4, 2)
        coefficients = midrank.coefficients(batch)[None]
        return estimator_world.ascent(
            coefficients, batch["outcomes"], scene.policy
        )

    sampler = estimator_moments.make_sampler(gradients, 100)
    exact = midrank.exact(scene)[None]
    for expected, is_right in ((midrank, True), (strict, False)):
        (moments,) = estimator_moments.measure(
            sampler,
            (estimator_gradients.in_float32(scene),),
            exact,
            exact,
            expected.expected(scene)[None],
            draws=1000,
            seed=0,
        )
        verdict = estimators.judge([vars(moments)])
        assert (verdict["largest"] < verdict["threshold"]) == is_right


def test_the_coefficients_are_those_of_bond():
    """Pins: a benchmark that drifts away from what it is about."""
    scene = estimator_gradients.in_float32(
        estimator_world.make_scenes()["tied"]
    )
    batch = estimator_world.draw(jax.random.key(0), scene, 4, 4)
    for estimator in estimator_choices.offered((4, 4)):
        choice, part = estimator.choice, estimator.part
        by_network = choice.uses_model
        drops_samples = (part, choice.forward) == ("forward", "best_sample")
        if part == "whole" or by_network or drops_samples:
            continue
        bond = Bare(choice)
        expected = getattr(bond, f"_{part}_coefficients")(
            bond.targets(dict(batch)), {}, batch["log_ratios"]
        )
        ours = getattr(estimator_choices, f"{part}_coefficients")
        np.testing.assert_allclose(
            ours(choice, batch), expected, rtol=1e-5, atol=1e-6
        )


class Bare(types.SimpleNamespace):
    """What `Bond` does with a batch, without a network."""

    targets = keras_bond.Bond.targets
    _forward_coefficients = keras_bond.Bond._forward_coefficients
    _backward_coefficients = keras_bond.Bond._backward_coefficients
    _baseline = keras_bond.Bond._baseline
    _keep_best = keras_bond.Bond._keep_best

    def __init__(self, choice):
        super().__init__(
            estimators=choice,
            num_policy_samples=choice.num_policy_samples,
            num_anchor_samples=choice.num_anchor_samples,
            quantile_model=None,
        )


def test_the_sequence_kl_is_a_sum_over_all_sequences():
    policy, anchor = estimator_kl.make_tables(2, 0.3)
    log_probs, anchor_log_probs = (
        np.asarray(jax.nn.log_softmax(x), "float64") for x in (policy, anchor)
    )
    kl = np.zeros(len(policy))
    tokens = range(estimator_kl.VOCABULARY)
    for first, second in itertools.product(tokens, tokens):
        mine, others = (
            x[:, 0, first] + x[:, first, second]
            for x in (log_probs, anchor_log_probs)
        )
        kl += np.exp(mine) * (mine - others)
    np.testing.assert_allclose(
        estimator_kl.sequence_kl(policy, anchor, 2), kl, rtol=1e-4
    )
    np.testing.assert_allclose(kl.mean(), 0.3, rtol=1e-3)


def test_the_excess_is_read_where_a_win_rate_is_crossed():
    win_rates = np.array([[[0.5, 2 / 3, 0.8]]])
    on_the_curve = [0.0, np.log(2) - 1 / 2, np.log(4) - 3 / 4]
    excess = estimator_learning.excess_kl(
        win_rates, np.array([[on_the_curve]]) + [0.0, 0.0, 0.3]
    )
    np.testing.assert_allclose(excess, [[[0.0, 0.0, 0.3]]], atol=1e-12)
    for level, expected in ((0.7, 0.075), (0.9, np.nan)):
        found = estimator_learning.at_win_rate(excess, win_rates, level)
        np.testing.assert_allclose(found, [[expected]])


def test_a_rate_that_fails_somewhere_is_not_chosen():
    values = np.array([[0.1, np.nan], [0.3, 0.3], [0.2, 0.2]])
    assert estimator_learning.choose(values) == 2


def test_adam_moves_by_its_learning_rate_at_first():
    zeros = jnp.zeros((1, 2))
    state = {"logits": zeros, "mean": zeros, "square": zeros}
    state = estimator_learning.adam(state, jnp.array([[3.0, -2.0]]), 1, 0.1)
    np.testing.assert_allclose(state["logits"], [[-0.1, 0.1]], rtol=1e-4)
