"""`HeldOut` on trainers whose distribution is known."""

import io
import json
import sys
import types

import keras
import numpy as np
import pytest
import rich.cells
import rich.console

from keras_bond.callbacks import HeldOut
from keras_bond.callbacks import completions
from keras_bond.callbacks.gold_reward import GoldReward
from keras_bond.callbacks.interface import TrainerInterface
from keras_bond.evaluation.comparison import agreement
from keras_bond.rewards import Samples
from keras_bond.rewards import get

PROMPTS = [f"prompt {i}" for i in range(200)]


class Policy(TrainerInterface):
    """Answers with numbers: the best of `n` normal draws.

    `bias` moves the trained reward, `drift` the gold reward.
    """

    def __init__(self, n=1, has_reference=True):
        self.n, self.drift, self.bias = n, 0.0, 0.0
        self.seed, self.step, self.scorer = 7, 0, object()
        self.has_reference = has_reference
        self.unscored = []

    def weight_names(self):
        names = ("policy", "anchor", "reference")
        return names if self.has_reference else names[:2]

    def set_anchor_rule(self, update_rate, every):
        raise AssertionError("HeldOut moves no anchor")

    def score_samples(self, samples):
        raise AssertionError("draw_scored has scored them")

    def log_probs_and_kls_of(self, samples, weights, batch_size):
        raise AssertionError("HeldOut needs the KLs only")

    def interpolate(self, weight):
        raise AssertionError("HeldOut measures the policy as it is")

    def num_updates(self):
        return self.step

    def sync(self):
        pass

    def draw_scored(
        self,
        prompts,
        num_samples=1,
        batch_size=None,
        weights="policy",
        seed=None,
    ):
        is_policy = weights == "policy"
        rng = np.random.default_rng(seed)
        shape = (len(prompts), num_samples, self.n if is_policy else 1)
        draws = rng.normal(size=shape).max(axis=-1)
        rewards = draws + self.bias * is_policy
        rewards[self.unscored] = np.nan
        texts = [f"{x - self.drift:.6f}" for x in draws.ravel()]
        samples = Samples(
            prompts=np.repeat(prompts, num_samples).tolist(),
            completions=texts,
            columns={},
            token_ids=np.zeros((len(texts), 1), "int32"),
            padding_mask=np.ones((len(texts), 1), bool),
            num_samples=num_samples,
        )
        return samples, rewards

    def kls_of(self, samples, weights="reference", batch_size=None):
        return np.full(len(samples), 0.25, "float32")


def gold(prompts, completions):
    return [float(text) for text in completions]


def begin(policy, **arguments):
    """A callback when the first epoch of its training has begun."""
    held_out = HeldOut(PROMPTS, **{"num_shown": 0, **arguments})
    return begin_again(held_out, policy)


def begin_again(held_out, policy):
    held_out.set_model(policy)
    held_out.on_train_begin()
    held_out.on_epoch_begin(0)
    return held_out


def epoch(held_out, steps=1):
    """An epoch of some steps; its logs."""
    logs = {}
    held_out.model.step += steps
    held_out.on_epoch_end(0, logs)
    return logs


@pytest.mark.parametrize("n", [1, 2, 4])
def test_one_sample_is_worth_the_best_of_n(n, capsys):
    """Fixed seeds; a 95 % interval misses 1 in 20 of other seeds."""
    held_out = begin(Policy(n))
    logs = epoch(held_out)
    point = held_out.points[-1]
    assert point["effective_n_low"] < n < point["effective_n_high"]
    assert point["effective_n_high"] < 1.5 * n
    assert logs["held_out/effective_n"] == point["effective_n"]
    assert logs["held_out/win_rate"] == pytest.approx(n / (n + 1), abs=0.02)
    by_n = {row["n"]: row["reward"] for row in held_out.frontier}
    assert logs["held_out/reward"] == pytest.approx(by_n[n], abs=0.08)
    assert logs["held_out/kl"] == 0.25
    assert set(logs) == {
        f"held_out/{name}"
        for name in ("effective_n", "win_rate", "reward", "kl")
    }
    assert "worth the best of" in capsys.readouterr().out


def test_prompts_that_cannot_be_scored_do_not_count():
    policy = Policy(2)
    policy.unscored = [0, 3]
    held_out = begin(policy, verbose=0)
    policy.unscored = [5]
    epoch(held_out)
    rewards = policy.draw_scored(PROMPTS, 8, seed=7)[1]
    scored = np.delete(rewards, [0, 3, 5], axis=0)
    point = held_out.points[-1]
    assert point["reward"] == pytest.approx(scored.mean())
    assert np.isfinite(point["win_rate"] + held_out.frontier[1]["reward"])
    policy.unscored = list(range(199))
    with pytest.raises(ValueError, match="Received: 1 of 200"):
        epoch(held_out)


def test_without_a_reference_only_the_rewards_are_measured(capsys):
    policy = Policy(has_reference=False)
    held_out = begin(policy, gold_reward=gold, num_shown=1)
    logs = epoch(held_out)
    names = ("reward", "gold_reward", "agreement")
    assert set(logs) == {f"held_out/{name}" for name in names}
    assert held_out.frontier is None
    assert "anchor" in capsys.readouterr().out
    policy.unscored = [0, 3]
    scored = np.delete(policy.draw_scored(PROMPTS, 8, seed=7)[1], [0, 3], 0)
    assert epoch(held_out)["held_out/reward"] == scored.mean()


def test_a_resumed_run_continues_its_files(tmp_path):
    """Pins: points or lines that are written twice, or forgotten."""
    path, policy = tmp_path / "run", Policy(2)
    for _ in range(2):
        # A new process for each epoch.
        held_out = begin(policy, path=path, verbose=0)
        epoch(held_out, steps=5)
    assert steps_of(path) == ([0, 5, 10], [0, 5, 10])
    numbers = json.loads((path / "held_out.json").read_text())
    assert numbers["frontier"] == held_out.frontier
    # Killed after step 10, in the middle of writing; back to step 5.
    with open(path / "completions.jsonl", "a") as file:
        file.write('{"step": 12, "prompt": "a"}\n{"step": 12, "prom')
    policy.step = 5
    epoch(begin(policy, path=path, verbose=0), steps=6)
    assert steps_of(path) == ([0, 5, 11], [0, 5, 11])
    # Another run in the same folder begins anew.
    policy.step = 0
    epoch(begin(policy, path=path, verbose=0), steps=3)
    assert steps_of(path) == ([0, 3], [0, 3])
    assert not list(path.glob("*unfinished*"))


def steps_of(path):
    """Steps of the points and of the completions, once for each prompt."""
    numbers = json.loads((path / "held_out.json").read_text())
    lines = (path / "completions.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert [steps.count(step) for step in set(steps)] == [200] * len(set(steps))
    return [p["step"] for p in numbers["points"]], sorted(set(steps))


def test_the_best_gold_reward_is_known_after_a_resume(tmp_path, capsys):
    policy = Policy(4)
    epoch(begin(policy, path=tmp_path, gold_reward=gold))
    held_out = begin(policy, path=tmp_path, gold_reward=gold)
    assert "over-optimized" not in capsys.readouterr().out
    policy.drift = 1.5
    epoch(held_out)
    assert held_out.points[-1]["is_overoptimized"]
    assert "over-optimized" in capsys.readouterr().out


def test_a_best_gold_reward_of_steps_that_are_run_again_is_forgotten(tmp_path):
    policy = Policy(4)
    policy.drift = 1.5
    epoch(begin(policy, path=tmp_path, gold_reward=gold, verbose=0), steps=5)
    policy.drift = 0.0
    epoch(begin(policy, path=tmp_path, gold_reward=gold, verbose=0), steps=5)
    # Killed; the checkpoint is that of step 5, of the drifted policy.
    policy.step, policy.drift = 5, 1.5
    held_out = begin(policy, path=tmp_path, gold_reward=gold, verbose=0)
    epoch(held_out, steps=5)
    assert not held_out.points[-1]["is_overoptimized"]


def test_another_reward_or_trainer_is_measured_from_the_start(tmp_path):
    """Pins: win rates against the pool of the reward before."""
    policy = Policy(2)
    held_out = begin(policy, path=tmp_path, gold_reward=gold, verbose=0)
    epoch(held_out, steps=5)
    pool = held_out.frontier
    policy.scorer = object()
    policy.unscored = [3]
    begin_again(held_out, policy)
    assert [point["step"] for point in held_out.points] == [5]
    assert held_out.frontier != pool
    fresh = begin(policy, gold_reward=gold, verbose=0)
    assert held_out.points == fresh.points
    other = Policy(4)
    other.step = 7
    begin_again(held_out, other)
    fresh = begin(other, gold_reward=gold, verbose=0)
    assert held_out.points == fresh.points
    assert held_out.frontier == fresh.frontier
    held_out.prompts = PROMPTS[:50]
    begin_again(held_out, other)
    assert len(held_out.points) == 1
    lines = (tmp_path / "completions.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert [steps.count(step) for step in (0, 5, 7)] == [200, 200, 50]


def test_changed_weights_are_measured_again_at_the_same_step(tmp_path):
    policy = Policy(2)
    held_out = begin(policy, path=tmp_path, verbose=0)
    epoch(held_out, steps=5)
    frontier, before = held_out.frontier, held_out.points[-1]
    policy.n = 8
    begin_again(held_out, policy)
    assert held_out.frontier is not None
    assert [point["step"] for point in held_out.points] == [0, 5]
    assert held_out.points[-1]["win_rate"] > before["win_rate"] + 0.1
    assert held_out.frontier == frontier
    epoch(held_out)
    assert steps_of(tmp_path) == ([0, 5, 6], [0, 5, 6])


def test_completions_stay_where_the_numbers_were_moved_away(tmp_path):
    policy = Policy(2)
    epoch(begin(policy, path=tmp_path, verbose=0), steps=5)
    (tmp_path / "held_out.json").unlink()
    epoch(begin(policy, path=tmp_path, verbose=0), steps=5)
    assert steps_of(tmp_path) == ([5, 10], [0, 5, 10])


def test_lines_are_json_where_nothing_is_scored(tmp_path, monkeypatch):
    """Pins: `NaN`, which is no JSON; a folder called `~`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    policy = Policy()
    policy.unscored = [0]
    begin(policy, path="~/run", verbose=0)
    lines = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
    records = [json.loads(x, parse_constant=pytest.fail) for x in lines[:2]]
    assert records[0]["reward"] is None and records[1]["reward"] is not None


def test_columns_of_both_rewards_have_names_of_their_own():
    policy = Policy()
    samples, rewards = policy.draw_scored(["p", "q"], num_samples=2)

    def logs(column):
        def judge(prompts, completions, log_extra):
            log_extra(column, [column] * len(completions))
            return [0.0] * len(completions)

        return judge

    get(logs("why"))(samples)
    GoldReward(logs("gold_why")).score(samples, rewards)
    assert set(samples.log.columns) == {"why", "gold_why"}
    with pytest.raises(ValueError, match=r"`gold_reward` of .*: \['why'\]"):
        GoldReward(logs("why")).score(samples, rewards)


@pytest.mark.parametrize(
    "prompts", [PROMPTS[:199], PROMPTS[:199] + ["another"]]
)
def test_other_prompts_in_one_run_are_refused(tmp_path, prompts):
    """Pins: NumPy's words on shapes, and prompts paired with others."""
    policy = Policy(2)
    epoch(begin(policy, path=tmp_path, gold_reward=gold, verbose=0), steps=5)
    files = {p: p.read_bytes() for p in tmp_path.iterdir()}
    other = HeldOut(prompts, tmp_path, gold, num_shown=0, verbose=0)
    message = f"`prompts` of .*another `path`.*{len(prompts)} prompts, where"
    with pytest.raises(ValueError, match=message):
        begin_again(other, policy)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == files
    # A run that begins with step 0 begins anew.
    policy.step = 0
    begin_again(other, policy)
    assert len(other.points) == 1


def test_fingerprints_know_number_order_token_ids_and_images():
    images = [np.full((16, 16, 3), value) for value in (1, 2)]
    kinds = [
        {"prompts": ["a", "b"]},
        {"prompts": ["b", "a"]},
        {"prompts": ["a", "b"], "columns": {"images": [[i] for i in images]}},
        {"prompts": ["a", "b"], "columns": {"answer": [1, 2]}},
        {"prompts": ["a", "b"], "columns": {"answer": [1, 3]}},
        {"prompts": None},
        {"prompts": None, "token_ids": np.array([[1, 0], [2, 0]])},
    ]
    found = []
    for kind in kinds:
        defaults = {"columns": {}, "token_ids": np.array([[1, 0], [3, 0]])}
        samples = Samples(
            completions=None,
            padding_mask=np.ones((2, 2), bool),
            num_samples=1,
            completion_ids=[[0], [0]],
            **{**defaults, **kind},
        )
        found.append(completions.fingerprint(samples))
    assert len({found["crc32"] for found in found}) == len(kinds)
    assert found[0] == {"count": 2, "crc32": found[0]["crc32"]}


def test_damaged_files_are_named(tmp_path):
    numbers = tmp_path / "held_out.json"
    lines = tmp_path / "completions.jsonl"
    policy = Policy()
    policy.step = 4
    numbers.write_text('{"frontier": []}')
    with pytest.raises(ValueError, match="held_out.json, KeyError: 'points'"):
        begin(policy, path=tmp_path)
    numbers.write_text('{"points": [{"step": 1}], "best_gold": []}')
    lines.write_text('not JSON\n{"step": 1}\n')
    with pytest.raises(ValueError, match="with the line b'not JSON"):
        begin(policy, path=tmp_path)
    assert lines.read_text().startswith("not JSON")


def test_an_initial_policy_that_is_always_beaten_is_drawn(tmp_path):
    policy = Policy()
    policy.bias = 100.0
    held_out = begin(policy, path=tmp_path, verbose=0)
    epoch(held_out)
    assert held_out.points[-1]["effective_n"] == np.inf
    assert (tmp_path / "best_of_n.png").exists()


def test_overoptimization_is_reported(capsys):
    """Reward rises, gold falls: warned of, but not when both rise.

    200 prompts of 4 samples: the gold reward moves by 13 standard errors.
    """
    policy = Policy()
    held_out = begin(policy, gold_reward=gold, num_samples=4)
    epoch(held_out)
    policy.n = 4
    epoch(held_out)
    assert "over-optimized" not in capsys.readouterr().out
    policy.n, policy.drift = 8, 1.5
    logs = epoch(held_out)
    assert "it is being over-optimized" in capsys.readouterr().out
    points = held_out.points[1:]
    assert [p["is_overoptimized"] for p in points] == [False, False, True]
    rewards = [p["reward"] for p in points]
    assert rewards == sorted(rewards)
    assert logs["held_out/gold_reward"] == points[-1]["gold_reward"]
    assert logs["held_out/gold_reward"] == pytest.approx(
        rewards[-1] - 1.5, abs=1e-4
    )
    assert logs["held_out/agreement"] == 1.0


def test_chance_is_not_overoptimization(capsys):
    """The same distribution again: lower, but by less than chance explains."""
    policy = Policy()
    held_out = begin(policy, gold_reward=gold, num_samples=4)
    for seed in range(4):
        policy.seed = seed
        epoch(held_out)
    rewards = [point["gold_reward"] for point in held_out.points[1:]]
    assert min(rewards) < rewards[0]
    assert not any(point["is_overoptimized"] for point in held_out.points)
    assert "over-optimized" not in capsys.readouterr().out


def test_a_gold_reward_may_leave_prompts_out():
    def some(prompts, completions):
        known = {"prompt 1", "prompt 2"}
        return [
            float(text) if prompt in known else None
            for prompt, text in zip(prompts, completions)
        ]

    policy = Policy()
    held_out = begin(policy, gold_reward=some, num_samples=4, verbose=0)
    _, rewards = policy.draw_scored(PROMPTS, 4, seed=7)
    expected = rewards[1:3].mean()
    point = held_out.points[0]
    assert point["gold_reward"] == pytest.approx(expected, abs=1e-5)
    assert point["reward"] == rewards.mean()
    with pytest.raises(ValueError, match="Received: 0 of 200"):
        begin(policy, gold_reward=lambda prompts, **_: [None] * len(prompts))


def test_agreement_is_that_of_plain_loops():
    rng = np.random.default_rng(0)
    gold, proxy = rng.integers(0, 3, size=(2, 20, 4)).astype("float64")
    counted, alike = 0, 0.0
    for g, p in zip(gold, proxy):
        for i in range(4):
            for j in range(i):
                if g[i] < g[j] or g[i] > g[j]:
                    counted += 1
                    same = (g[i] - g[j]) * (p[i] - p[j])
                    alike += 1.0 if same > 0 else 0.5 * (same == 0)
    assert agreement(proxy, gold) == pytest.approx(alike / counted)
    flat = np.zeros((2, 3))
    assert np.isnan(agreement(flat, flat))
    assert agreement(-gold, gold) == 0.0


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`pool_size` must .* pool_size=8, ns"):
        HeldOut(PROMPTS, pool_size=8)
    with pytest.raises(ValueError, match="multiple of `num_samples`"):
        HeldOut(PROMPTS, pool_size=20)
    with pytest.raises(ValueError, match="`num_samples` must"):
        HeldOut(PROMPTS, num_samples=0)
    with pytest.raises(ValueError, match="`num_samples` must"):
        HeldOut(PROMPTS, gold_reward=gold, num_samples=1)
    with pytest.raises(ValueError, match="`every` must .* Received: every=0"):
        HeldOut(PROMPTS, every=0)
    for size in ("a", 2.5, True, 0, np.int64(4)):
        with pytest.raises(ValueError, match="`batch_size` must be an"):
            HeldOut(PROMPTS, batch_size=size)
    with pytest.raises(ValueError, match=r"ns=\(1, 2\*\*16609 or beyond\)"):
        HeldOut(PROMPTS, ns=(1, 10**5000))
    with pytest.raises(TypeError, match="`reward` must be a function"):
        HeldOut(PROMPTS, gold_reward=3)


def test_bad_models_are_named():
    with pytest.raises(ValueError, match="a model of type SimpleNamespace"):
        begin(types.SimpleNamespace())
    with pytest.raises(ValueError, match="of type Policy without a reference"):
        begin(Policy(has_reference=False), ns=(1, 2))
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    one = np.ones((2, 1))
    with pytest.raises(ValueError, match="a model of type Sequential"):
        model.fit(one, one, verbose=0, callbacks=[HeldOut(PROMPTS)])


RECORD = dict(
    step=7,
    prompt="two\nlines " * 30,
    completion="long " * 200,
    reward=0.123456,
    reference_completion="[bold]short \x1b[31m\u202e",
    reference_reward=float("nan"),
    quantile=1.0,
)


def printed(records, width=80):
    file = io.StringIO()
    completions.show(records, rich.console.Console(width=width, file=file))
    return file.getvalue()


def test_whole_completions_fit_the_terminal():
    """Pins: completions that color, clear or ring the user's terminal."""
    text = printed([RECORD])
    assert text.splitlines()[1].strip() == "Held-out prompts at step 7"
    assert all(len(row) <= 80 for row in text.splitlines())
    assert text.count("long") == 200 and text.count("two") == 30
    assert "policy: reward 0.123, quantile 1\n" in text
    assert "initial policy: reward nan\n" in text
    assert "[bold]short \\x1b[31m\\u202e" in text
    assert "\x1b" not in text and "\u202e" not in text


def test_lines_stay_lines_and_wide_characters_are_two_columns():
    wide = "全角文字" * 10
    record = {**RECORD, "prompt": "a\r\n\tb\n\n\n\n\nc", "completion": wide}
    rows = printed([record], width=30).splitlines()
    start = rows.index("prompt") + 1
    lines = [row.rstrip() for row in rows[start : start + 4]]
    assert lines == ["  a", "      b", "", "  c"]
    halves = [row for row in rows if "全" in row]
    assert "".join(halves).replace(" ", "") == wide
    assert max(map(rich.cells.cell_len, rows)) == 30


def test_equal_completions_are_shown_once():
    text = printed([{**RECORD, "reference_completion": RECORD["completion"]}])
    assert "initial policy: reward nan, the same completion\n" in text
    assert text.count("long") == 200


def test_notebooks_show_html(monkeypatch):
    """Pins: markup of a completion that becomes part of the page."""
    shown = []
    display = types.SimpleNamespace(display=shown.append, HTML=str)
    ipython = types.SimpleNamespace(display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    record = {**RECORD, "prompt": "<b>bold\x07", "<i>": "&"}
    console = types.SimpleNamespace(is_jupyter=True)
    completions.show([record], console)
    (page,) = shown
    assert "&lt;b&gt;bold\\x07" in page and "<b>bold" not in page
    assert "&lt;i&gt;" in page and ">&amp;<" in page
    assert page.count("long") == 200 and "\u202e" not in page
    assert page.count("<div") == page.count("</div>")


def test_policies_without_a_tokenizer_have_records():
    samples = Samples(
        prompts=None,
        completions=None,
        columns={},
        token_ids=np.zeros((4, 3), "int32"),
        padding_mask=np.ones((4, 3), bool),
        num_samples=2,
        completion_ids=[[1, 2], [3], [4], [5]],
    )
    rewards = np.array([[1.0, 2.0], [3.0, 4.0]])
    other = completions.anchor_answers(samples, rewards[::-1])
    records = completions.records(0, samples, rewards, other)
    assert [r["completion"] for r in records] == ["[1, 2]", "[4]"]
    assert [r["quantile"] for r in records] == [0.0, 1.0]
    assert "None" not in printed(records)


def test_columns_that_rewards_log_stand_beside_the_completions():
    """The policy's, of the first completion of each prompt, JSON and all."""
    samples, rewards = Policy().draw_scored(["p", "q"], num_samples=2)
    other = completions.anchor_answers(samples, rewards)

    def judge(prompts, completions, log_extra):
        log_extra("golden_completion", ["a", "b", np.float32(1.5), "d"])
        log_extra("found", [["x"], None, 1, 2])
        return [0.0] * len(completions)

    get(judge)(samples)
    records = completions.records(0, samples, rewards, other)
    assert [r["golden_completion"] for r in records] == ["a", 1.5]
    assert [r["found"] for r in records] == ["['x']", 1]
    json.dumps(records)
    assert "golden_completion\n  a" in printed(records)
    assert "found\n  ['x']" in printed(records)
    samples.log.columns["completion"] = ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="`log_extra` must not be given"):
        completions.records(0, samples, rewards, other)
