"""The speed benchmarks in small: they run, and their arithmetic is right.

JAX only: the contenders have processes, and backends, of their own.
"""

import csv
import dataclasses
import pathlib
import sys

import keras
import numpy as np
import pytest

sys.path.append(
    str(pathlib.Path(__file__).parents[2] / "integration" / "benchmarks")
)

import jax
import scaling
import speed_contest
import speed_costs
import speed_kerashub
import speed_results
import speed_shapes
import step
from keras import ops

from keras_bond import formulas

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="the formulas are checked on JAX"
)

SMALL = speed_shapes.Shape(
    vocabulary=512,
    layers=2,
    width=64,
    intermediate=256,
    heads=4,
    kv_heads=2,
    head_dim=16,
    prompts=3,
    prompt_length=8,
    completion_length=8,
)


@pytest.fixture
def compiles_fast(monkeypatch):
    """In the contenders, where speed is beside the point here."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_step_writes_tables_and_a_picture(tmp_path, compiles_fast, capsys):
    chosen = ["--backends", "jax", "--baselines", "kerashub"]
    assert step.main(["--quick", *chosen, "--output", str(tmp_path)])
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "failed" not in table
    assert " parameters, " not in table, "the contenders differ in size"
    header, _, ours, baseline = contenders(table)
    assert header[2] == "time / jax"
    assert (ours[0], ours[2]) == ("jax", "1.00 (1.00 to 1.00)")
    assert ours[header.index("compilations later")] == "0"
    assert baseline[0] == "kerashub"
    steps = rows_of(tmp_path / "steps.csv")
    assert len(steps) == 2 * 2
    assert min(float(row["seconds"]) for row in steps) > 0
    phases = {
        row["phase"]: float(row["seconds"])
        for row in rows_of(tmp_path / "phases.csv")
        if row["contender"] == "jax"
    }
    assert {"reward", "learn", "other"} < set(phases)
    assert (tmp_path / "step.png").stat().st_size > 1000


def contenders(table):
    """The cells of the first table."""
    lines = table.partition("| contender")[2].partition("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in f"| contender{lines}".splitlines()
    ]


def test_trl_takes_part(monkeypatch):
    """With one thread: several wait for each other on a busy machine."""
    pytest.importorskip("trl", reason="TRL is an optional contender")
    monkeypatch.setattr(speed_contest.os, "cpu_count", lambda: 1)
    worker = speed_contest.Worker("trl", speed_shapes.SIZES["0.02M"])
    records = speed_contest.hold([worker], 1, 1, 1)
    assert not records["trl"].failure
    assert records["trl"].facts["parameters"] == worker.shape.parameters
    (profile,) = records["trl"].profiles
    assert {"rollout policy", "score_with_anchor", "learn"} < set(
        profile["phases"]
    )
    assert min(profile["phases"].values()) > 0


def test_scaling_writes_tables_and_a_picture(tmp_path, compiles_fast):
    arguments = ["--quick", "--sweeps", "vocabulary"]
    assert scaling.main([*arguments, "--output", str(tmp_path)])
    table = (tmp_path / "table.md").read_text()
    assert "## vocabulary, full" in table
    assert "beyond the embedding" in table
    assert {row["contender"] for row in rows_of(tmp_path / "steps.csv")} == {
        "256",
        "512",
    }
    memory = rows_of(tmp_path / "memory.csv")
    learn = [row for row in memory if row["stage"] == "learn"]
    for row in learn:
        embedding = 4 * int(row["value"]) * speed_shapes.SIZES["0.02M"].width
        beyond = int(row["temp_bytes"]) - int(row["beyond_embedding"])
        assert beyond == embedding
    assert (tmp_path / "scaling.png").stat().st_size > 1000


def test_scaling_lets_completions_end(tmp_path, compiles_fast):
    """Truncated and whole rows are compiled before the second step."""
    arguments = ["--quick", "--sweeps", "raggedness", "--modes", "lora"]
    assert scaling.main([*arguments, "--output", str(tmp_path)])
    table = (tmp_path / "table.md").read_text()
    row = table.partition("| ends with")[2].splitlines()[2].split("|")
    assert (row[1].strip(), row[2].strip()) == ("0.03125", "0.25")
    assert all(float(cell) > 0 for cell in row[3:-1])


def test_the_ratio_is_that_of_rounds():
    """Pins: the ratio of two medians, which noise of the machine moves."""
    ours = np.array([1.0, 10.0, 2.0, 4.0])
    other = np.array([3.0, 30.0, 8.0, 8.0])
    median, low, high = speed_contest.paired_ratio(other, ours)
    assert (median, low, high) == (3.0, 2.75, 3.25)
    assert speed_contest.paired_ratio(other[:1], ours) == (3.0, 3.0, 3.0)
    assert np.isnan(speed_contest.paired_ratio([], ours)).all()


ALIVE = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": 1.0, "phases": {}}), flush=True)
"""
DYING = """
import sys
print('{"ready": true}', flush=True)
sys.stdin.readline()
print('{"seconds": 1.0}', flush=True)
sys.stdin.readline()
sys.exit("out of luck")
"""
SILENT = """
import sys
print('{"ready": true}', flush=True)
sys.stdin.read()
"""


def worker(label, code, patience=60.0):
    command = [sys.executable, "-c", code]
    return speed_contest.Worker("jax", SMALL, label, command, patience)


def test_a_dying_contender_is_reported_and_the_others_go_on():
    workers = [
        worker("alive", ALIVE),
        worker("dying", DYING),
        worker("silent", SILENT, patience=0.5),
    ]
    records = speed_contest.hold(workers, 2, 1, 1)
    assert not records["alive"].failure
    assert len(records["alive"].steps) == 2
    assert records["dying"].warm_up == [{"seconds": 1.0}]
    assert records["dying"].steps == []
    assert "`dying` has ended, exit status 1" in records["dying"].failure
    assert "out of luck" in records["dying"].failure
    assert "said nothing for 0.5 s" in records["silent"].failure


def test_parameters_are_those_of_the_model():
    for shape in (SMALL, dataclasses.replace(SMALL, lora_rank=4)):
        policy = speed_shapes.build_policy(shape)
        trained = sum(v.value.size for v in policy.trainable_variables)
        adapters = shape.trained_parameters if shape.lora_rank else 0
        assert policy.count_params() == shape.parameters + adapters
        assert trained == shape.trained_parameters


def xla_flops(function, policy):
    """FLOPs of a function of the policy's variables, as XLA counts them."""

    def pure(values):
        mapping = list(zip(policy.variables, values))
        with keras.StatelessScope(state_mapping=mapping):
            return function()

    values = [v.value for v in policy.variables]
    return [
        jax.jit(f).lower(values).cost_analysis()["flops"]
        # Squared, so that the gradient wants the value.
        for f in (pure, jax.grad(lambda v: ops.sum(pure(v) ** 2)))
    ]


def test_flops_are_those_that_xla_counts():
    """The forward pass; and forward and backward, three times as many."""
    shape = dataclasses.replace(
        SMALL, vocabulary=2048, width=128, intermediate=256, head_dim=64
    )
    policy = speed_shapes.build_policy(shape)
    ids = ops.ones((2, 128), "int32")
    forward, both = xla_flops(
        lambda: speed_kerashub.logits_of(policy, ids), policy
    )
    expected = speed_costs.forward(shape, 2, 128, 128).flops
    np.testing.assert_allclose(forward, expected, rtol=0.1)
    np.testing.assert_allclose(both, 3 * expected, rtol=0.1)


def test_the_least_time_is_that_of_what_is_slower():
    machine = {"flops": 10.0, "bytes": 2.0}
    computing, moving = speed_costs.Cost(50, 4), speed_costs.Cost(10, 6)
    assert speed_costs.seconds([computing, moving], machine) == 5.0 + 3.0
    assert speed_costs.bound([computing, moving], machine) == "compute"
    assert speed_costs.bound([moving], machine) == "memory"


def test_decoding_costs_what_one_pass_does_and_reads_weights_each_time():
    """Attention to what came before is half of what a dense pass does."""
    tokens = speed_costs.decode(SMALL, rows=6)
    assert len(tokens) == SMALL.completion_length
    dense = speed_costs.forward(SMALL, 6, SMALL.length, SMALL.length)
    dense_context = 4 * SMALL.heads * SMALL.head_dim * SMALL.length
    for context, token in enumerate(tokens, SMALL.prompt_length + 1):
        missing = dense_context * (1 - context / SMALL.length)
        expected = dense.flops / SMALL.length - 6 * SMALL.layers * missing
        np.testing.assert_allclose(token.flops, expected)
        cache = 2 * SMALL.layers * SMALL.kv_heads * SMALL.head_dim
        assert token.bytes - dense.bytes == 4 * 6 * cache * context


def test_a_prompt_is_read_once_for_its_samples():
    """The products of whole rows, less those of prompts read again."""
    shape = SMALL.with_mode("full")
    whole = speed_costs.forward(
        shape, 3 * shape.prompts, shape.length, shape.completion_length
    )
    again = speed_costs.forward(
        shape, 2 * shape.prompts, shape.prompt_length, 0, shape.length
    )
    # The prompts themselves attend to no completion.
    attention = 4 * shape.heads * shape.head_dim * shape.completion_length
    attention *= shape.layers * shape.prompts * shape.prompt_length
    expected = whole.flops - again.flops - attention
    np.testing.assert_allclose(speed_costs.read(shape, 3).flops, expected)
    assert speed_costs.read(shape, 3).bytes == whole.bytes


def test_lora_learns_with_two_thirds_of_the_products():
    full, lora = (
        speed_costs.learn(SMALL.with_mode(mode))[0] for mode in ("full", "lora")
    )
    np.testing.assert_allclose(lora.flops / full.flops, 2 / 3)
    assert lora.bytes < full.bytes


def test_the_plain_loop_has_the_loss_of_the_formulas():
    policy, anchor = (speed_shapes.build_policy(SMALL, seed) for seed in (0, 1))
    learner = speed_kerashub.PlainJBond(policy, anchor, SMALL)
    generator = np.random.default_rng(0)
    rows = generator.integers(0, SMALL.vocabulary, (2, 3, SMALL.length))
    policy_rows, best = (ops.convert_to_tensor(r, "int32") for r in rows)
    batch = {
        "policy_rows": policy_rows,
        "best_rows": best,
        "penalized": np.array([True, False, False]),
    }
    loss = learner.compute_loss(batch, y_pred=learner(batch))

    def log_probs(model, rows):
        logits = speed_kerashub.logits_of(model, rows)
        token_log_probs = formulas.token_log_probs(logits[:, :-1], rows[:, 1:])
        counts = np.arange(1, SMALL.length) >= SMALL.prompt_length
        mask = np.broadcast_to(counts, token_log_probs.shape)
        return formulas.sequence_log_probs(token_log_probs, mask)[:, None]

    own = log_probs(policy, policy_rows)
    returns = formulas.backward_returns(
        formulas.jbond_reward(batch["penalized"])[:, None],
        own - log_probs(anchor, policy_rows),
    )
    valid = np.ones(3, bool)
    advantages = returns - formulas.baseline(returns, valid, "batch")
    weigh = formulas.weighted_likelihood_loss
    expected = 0.5 * weigh(log_probs(policy, best), np.ones((3, 1)))
    expected += 0.5 * weigh(own, advantages)
    np.testing.assert_allclose(loss, ops.mean(expected), rtol=1e-5)


def test_the_plain_loop_learns_from_the_better_anchor_sample(monkeypatch):
    monkeypatch.setattr(speed_shapes, "score", lambda ids: ids.sum(axis=1))
    loop = speed_kerashub.Loop.__new__(speed_kerashub.Loop)
    loop.shape = dataclasses.replace(SMALL, prompt_length=1)
    policy_rows = np.array([[9, 1], [9, 5]])
    anchor_rows = [np.array([[9, 2], [9, 7]]), np.array([[9, 3], [9, 4]])]
    batch = loop.score(policy_rows, anchor_rows)
    np.testing.assert_array_equal(batch["best_rows"], [[9, 3], [9, 7]])
    np.testing.assert_array_equal(batch["penalized"], [True, False])


def test_an_embeddings_gradient_is_needed_in_full_fine_tuning_only():
    contender = speed_results.Contender(*[None] * 13)
    for mode, expected in (("full", 10**6 - 4 * 512 * 64), ("lora", 10**6)):
        contender.shape = SMALL.with_mode(mode)
        found = speed_results.beyond_embedding(contender, 10**6)
        assert found == expected
