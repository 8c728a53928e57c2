"""The benchmark of the estimators in small: it runs, and it notices.

JAX only: the benchmark compiles its draws with it.
"""

import csv
import itertools
import pathlib
import sys

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
import estimator_world
import estimators
import jax
import jax.numpy as jnp
from keras import ops

from keras_bond import formulas
from keras_bond.formulas.quantile_tables import harmonic_table
from keras_bond.rewards import scores as scores_lib
from keras_bond.training.estimators import BY_NAME
from tests.formulas import distributions
from tests.numeric import gradient

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="the benchmark runs on JAX"
)

# The estimators of `keras_bond.Bond`, without what is learned.
OFFERED = {
    "pooled": estimator_choices.POOLED,
    "control_variate": {
        "forward": "control_variate",
        "quantiles": "harmonic",
        "ties": "midrank",
        "baseline": "mixed",
    },
    "paper": {"quantiles": "harmonic"},
    "monte_carlo": {"quantiles": "monte_carlo", "ties": "midrank"},
    "jbond": {},
}


def test_it_writes_a_table_pictures_and_numbers(tmp_path, monkeypatch, capsys):
    """False alarm: below 1e-4, and the seeds are fixed."""
    monkeypatch.setattr(estimator_kl, "SETTINGS", ((3, 0.2),))
    monkeypatch.setattr(estimator_kl, "POLICY_SAMPLES", (1,))
    monkeypatch.setattr(estimator_gradients, "compared", some_of_the_compared)
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


def some_of_the_compared(split):
    """Compiling all of them takes seconds."""
    return [
        estimator
        for estimator in estimator_choices.compared(split)
        if estimator.part != "backward" or "pairs, random" in estimator.name
    ]


def test_it_notices_a_wrong_mean():
    """Midrank ties measured against what strict ties are to give."""
    scene = estimator_world.make_scenes()["tied"]
    midrank, strict = (
        estimator_choices.Estimator("backward", ties, 4, 2, ties=ties)
        for ties in ("midrank", "strict")
    )

    def gradients(key, scene):
        batch = estimator_world.draw(key, scene, 4, 2)
        coefficients = midrank.coefficients(batch)[None]
        return estimator_world.ascent(
            coefficients, batch["outcomes"], scene.policy
        )

    sampler = estimator_gradients.make_sampler(gradients, 100)
    exact = midrank.exact(scene)[None]
    for expected, is_right in ((midrank, True), (strict, False)):
        (moments,) = estimator_gradients.measure(
            sampler,
            (estimator_gradients.in_float32(scene),),
            exact,
            exact,
            expected.expected(scene)[None],
            draws=1000,
            seed=0,
        )
        verdict = estimators.check_means([vars(moments)])
        assert (verdict["largest"] < verdict["threshold"]) == is_right


def test_the_coefficients_are_those_of_bond():
    """Pins: a benchmark that drifts away from what it is about."""
    scene = estimator_gradients.in_float32(
        estimator_world.make_scenes()["tied"]
    )
    batch = estimator_world.draw(jax.random.key(0), scene, 4, 4)
    outcomes = batch["outcomes"]
    batch["ranks"] = scores_lib.dense_ranks(np.asarray(batch["rewards"]))
    for name, settings in OFFERED.items():
        for n in (2,) if name in ("pooled", "jbond") else (2, 4):
            bond = BY_NAME[name](n, 4, 4)
            ours = estimator_choices.Estimator(
                "whole", name, 4, 4, n, **settings
            )
            assert ours.fits()
            targets = {
                **batch,
                **bond.targets(
                    {**batch, "completion_ids": outcomes[..., None]}
                ),
            }
            backward = estimator_choices.backward_coefficients(ours, batch)
            np.testing.assert_allclose(
                backward,
                bond.backward(targets, {}, batch["log_ratios"]),
                rtol=1e-5,
                atol=1e-6,
            )
            forward = estimator_choices.forward_coefficients(ours, batch)
            if ours.forward == "best_sample":
                # Bond drops the other samples.
                picked = forward.argmax(axis=1)[:, None]
                np.testing.assert_array_equal(
                    targets["completion_ids"][:, 4:, 0],
                    jnp.take_along_axis(outcomes, picked, axis=1),
                )
                continue
            np.testing.assert_allclose(
                forward,
                bond.forward(targets, {}, batch["log_ratios"]),
                rtol=1e-5,
                atol=1e-6,
            )


@pytest.mark.parametrize("n", [2, 4])
def test_strict_ties_count_as_beaten(n):
    estimator = estimator_choices.Estimator(
        "backward", "", 1, 4, n, quantiles="harmonic", ties="strict"
    )
    table, strict = harmonic_table(4), estimator.tie_table()
    for c, t in itertools.product(range(5), range(5)):
        if c + t <= 4:
            assert strict[c][t] == pytest.approx((n - 1) * table[c + t])


def test_the_sequence_kl_is_a_sum_over_all_sequences():
    policy, anchor = estimator_kl.make_tables(2, 0.3)
    log_probs, anchor_log_probs = (
        np.asarray(jax.nn.log_softmax(x), "float64") for x in (policy, anchor)
    )
    kl = np.zeros(len(policy))
    tokens = range(estimator_kl.VOCABULARY)
    for first, second in itertools.product(tokens, tokens):
        policy_log_prob, anchor_log_prob = (
            x[:, 0, first] + x[:, first, second]
            for x in (log_probs, anchor_log_probs)
        )
        kl += np.exp(policy_log_prob) * (policy_log_prob - anchor_log_prob)
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


def kl(p, q):
    return float(np.sum(p * np.log(p / q)))


# A policy of two tokens: the first ends the sequence if it is 0.
FIRST = np.array([0.2, -0.3, 0.5])
SECOND = np.array([[0.0, 0.0, 0.0], [0.7, -0.2, 0.1], [-0.5, 0.4, 0.2]])
OTHER_FIRST = np.array([0.5, 0.1, -0.4])
OTHER_SECOND = np.array([[0.0, 0.0, 0.0], [-0.3, 0.6, 0.0], [0.1, 0.1, 0.9]])
SEQUENCES = [(0, 0), *itertools.product((1, 2), range(3))]


def two_token_probs(first, second):
    p = distributions.softmax(first)
    return np.array(
        [
            p[0] if a == 0 else p[a] * distributions.softmax(second[a])[b]
            for a, b in SEQUENCES
        ]
    )


def test_the_full_vocabulary_loss_descends_the_kl_of_sequences():
    """By enumeration of the samples; the tail term is half of the truth.

    Pins: a missing tail, a lost stop.
    """
    parameters = np.concatenate([FIRST[None], SECOND]).ravel()
    samples = np.array(SEQUENCES)
    mask = np.array([[True, a != 0] for a, _ in SEQUENCES])
    chances = two_token_probs(FIRST, SECOND)
    other = np.stack(
        [np.tile(OTHER_FIRST, (7, 1)), OTHER_SECOND[samples[:, 0]]], axis=1
    ).astype("float32")

    def loss(flat):
        table = ops.reshape(flat, (4, 3))
        logits = ops.stack(
            [
                ops.broadcast_to(table[0], (7, 3)),
                ops.take(table, samples[:, 0] + 1, axis=0),
            ],
            axis=1,
        )
        losses = estimator_kl.full_vocabulary_kl_loss(
            formulas.token_kls(logits, other),
            formulas.token_log_probs(logits, samples),
            mask,
        )
        return ops.sum(ops.array(chances.astype("float32")) * losses)

    def truth(flat):
        table = flat.reshape(4, 3)
        return kl(
            two_token_probs(table[0], table[1:]),
            two_token_probs(OTHER_FIRST, OTHER_SECOND),
        )

    steps = 1e-5 * np.eye(12)
    expected = [
        (truth(parameters + s) - truth(parameters - s)) / 2e-5 for s in steps
    ]
    np.testing.assert_allclose(gradient(loss, parameters), expected, atol=1e-5)


def test_the_tail_is_what_comes_after_a_token():
    """Earlier terms would change no expectation, only add variance."""
    kls = np.array([[1.0, 2.0, 4.0, 8.0]], "float32")
    mask = np.array([[True, True, True, False]])

    def loss(log_probs):
        return ops.sum(
            estimator_kl.full_vocabulary_kl_loss(kls, log_probs, mask)
        )

    slope = gradient(loss, np.array([[-1.0, -2.0, -3.0, -4.0]]))
    np.testing.assert_allclose(slope, [[6.0, 4.0, 0.0, 0.0]])
