"""What the measuring callbacks say of trainers whose law is known."""

import json
import types

import keras
import numpy as np
import pytest

import keras_bond
from keras_bond.callbacks import reward_overoptimisation
from keras_bond.rewards import Samples

PROMPTS = [f"prompt {i}" for i in range(200)]


class Policy:
    """Answers with numbers: the best of `n` normal draws.

    `skill` moves the trained reward, `drift` what is really wanted.
    """

    def __init__(self, n=1):
        self.n, self.drift, self.bias = n, 0.0, 0.0
        self.seed = 7
        self.weight_sets = {"reference": None}
        self.optimizer = types.SimpleNamespace(iterations=np.array(0))
        self.unscored = []

    def draw_scored(
        self, prompts, num_samples, batch_size=None, weights="policy", seed=None
    ):
        n = self.n if weights == "policy" else 1
        seed = self.seed if seed is None else seed
        rng = np.random.default_rng(seed)
        draws = rng.normal(size=(len(prompts), num_samples, n)).max(axis=-1)
        rewards = (draws + self.bias).astype("float32")
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

    def evaluate(self, prompts, batch_size, return_dict, verbose):
        return {"kl_ref": 0.25}


def report_of(policy, **arguments):
    report = keras_bond.callbacks.BestOfNReport(PROMPTS, **arguments)
    report.set_model(policy)
    report.on_train_begin()
    return report


def value_of(prompts, completions):
    return [float(text) for text in completions]


def watch(policy, gold=value_of):
    callback = keras_bond.callbacks.RewardOveroptimisation(PROMPTS, gold)
    callback.set_model(policy)
    callback.on_train_begin()
    return callback


@pytest.mark.parametrize("n", [1, 2, 4])
def test_one_sample_is_worth_the_best_of_n(n, capsys):
    """Fixed seeds; a 95 % interval misses 1 in 20 of other seeds."""
    policy = Policy(n)
    report = report_of(policy)
    logs = {}
    report.on_epoch_end(0, logs)
    point = report.points[0]
    assert point["effective_n_low"] < n < point["effective_n_high"]
    assert point["effective_n_high"] < 1.5 * n
    assert logs["best_of_n/effective_n"] == point["effective_n"]
    assert logs["best_of_n/win_rate"] == pytest.approx(n / (n + 1), abs=0.02)
    by_n = {row["n"]: row["reward"] for row in report.frontier}
    assert logs["best_of_n/reward"] == pytest.approx(by_n[n], abs=0.08)
    assert "worth the best of" in capsys.readouterr().out


def test_prompts_that_cannot_be_scored_do_not_count():
    policy = Policy(2)
    policy.unscored = [0, 3]
    report = report_of(policy, verbose=0)
    report.on_epoch_end(0, {})
    assert np.isfinite(report.points[0]["reward"])
    policy.unscored = list(range(199))
    with pytest.raises(ValueError, match="Received: 1 of 200"):
        report.on_epoch_end(1, {})


def test_a_resumed_run_goes_on_with_its_picture(tmp_path):
    path = tmp_path / "run" / "best_of_n.svg"
    policy = Policy(2)
    for epoch, steps in ((0, 5), (1, 10)):
        # A new process for each epoch.
        report = report_of(policy, path=path, verbose=0)
        policy.optimizer.iterations = np.array(steps)
        report.on_epoch_end(epoch, {})
    numbers = json.loads(path.with_suffix(".json").read_text())
    assert [p["step"] for p in numbers["points"]] == [5, 10]
    assert numbers["frontier"] == report.frontier
    # Another run in the same folder begins anew.
    report = report_of(policy, path=path, verbose=0)
    report.on_epoch_end(0, {})
    numbers = json.loads(path.with_suffix(".json").read_text())
    assert [p["step"] for p in numbers["points"]] == [10]


def test_a_start_that_is_always_beaten_is_drawn(tmp_path):
    policy = Policy()
    policy.bias = 100.0
    start = Policy()
    report = report_of(start, path=tmp_path / "n.png", verbose=0)
    report.set_model(policy)
    report.on_epoch_end(0, {})
    assert report.points[0]["effective_n"] == np.inf
    assert (tmp_path / "n.png").exists()


def test_what_the_report_refuses():
    make = keras_bond.callbacks.BestOfNReport
    with pytest.raises(ValueError, match="`pool_size` must .* pool_size=8, ns"):
        make(PROMPTS, pool_size=8)
    with pytest.raises(ValueError, match="multiple of `num_samples`"):
        make(PROMPTS, pool_size=20)
    with pytest.raises(ValueError, match="`num_samples` must"):
        make(PROMPTS, num_samples=0)
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="Sequential without a reference"):
        model.fit(
            np.ones((2, 1)),
            np.ones((2, 1)),
            verbose=0,
            callbacks=[make(PROMPTS)],
        )


def test_overoptimisation_is_told(capsys):
    """Proxy rises, gold falls: warned of, but not when both rise.

    200 prompts of 4 samples: the gold reward moves by 13 standard errors.
    """
    policy = Policy()
    callback = watch(policy)
    logs = {}
    callback.on_epoch_end(0, logs)
    policy.n = 4
    callback.on_epoch_end(1, logs)
    assert capsys.readouterr().out == ""
    policy.n, policy.drift = 8, 1.5
    callback.on_epoch_end(2, logs)
    assert "it is being over-optimised" in capsys.readouterr().out
    flags = [point["is_overoptimised"] for point in callback.points]
    assert flags == [False, False, True]
    proxies = [point["proxy_reward"] for point in callback.points]
    assert proxies == sorted(proxies)
    assert logs["gold/reward"] == callback.points[-1]["reward"]
    assert logs["gold/reward"] == pytest.approx(proxies[-1] - 1.5, abs=1e-4)
    assert logs["gold/agreement"] == 1.0


def test_chance_is_no_overoptimisation(capsys):
    """The same law drawn again: lower, but by less than chance explains."""
    policy = Policy()
    callback = watch(policy)
    for epoch in range(4):
        policy.seed = epoch
        callback.on_epoch_end(epoch, {})
    rewards = [point["reward"] for point in callback.points]
    assert min(rewards) < rewards[0]
    assert not any(point["is_overoptimised"] for point in callback.points)
    assert capsys.readouterr().out == ""


def test_a_gold_reward_may_leave_prompts_out():
    def gold(prompts, completions):
        known = {"prompt 1", "prompt 2"}
        return [
            float(text) if prompt in known else None
            for prompt, text in zip(prompts, completions)
        ]

    policy = Policy()
    callback = watch(policy, gold)
    callback.on_epoch_end(0, None)
    _, rewards = policy.draw_scored(PROMPTS, 4)
    expected = rewards[1:3].mean()
    assert callback.points[0]["reward"] == pytest.approx(expected, abs=1e-5)
    callback = watch(policy, lambda prompts, completions: [None] * len(prompts))
    with pytest.raises(ValueError, match="Received: 0 of 200"):
        callback.on_epoch_end(0, None)


def test_agreement_is_that_of_plain_loops():
    rng = np.random.default_rng(0)
    gold, proxy = rng.integers(0, 3, size=(2, 20, 4)).astype("float32")
    gold[3] = proxy[3] = np.nan
    counted, alike = 0, 0.0
    for g, p in zip(gold, proxy):
        for i in range(4):
            for j in range(i):
                if g[i] < g[j] or g[i] > g[j]:
                    counted += 1
                    same = (g[i] - g[j]) * (p[i] - p[j])
                    alike += 1.0 if same > 0 else 0.5 * (same == 0)
    measured = reward_overoptimisation.agreement(gold, proxy)
    assert measured == pytest.approx(alike / counted)
    flat = np.zeros((2, 3), "float32")
    assert np.isnan(reward_overoptimisation.agreement(flat, flat))
    assert reward_overoptimisation.agreement(gold, -gold) == 0.0


def test_what_the_watch_refuses():
    make = keras_bond.callbacks.RewardOveroptimisation
    with pytest.raises(TypeError, match="`reward` must be a function"):
        make(PROMPTS, 3)
    with pytest.raises(ValueError, match="`num_samples` must"):
        make(PROMPTS, value_of, num_samples=1)
    with pytest.raises(ValueError, match="a model of type SimpleNamespace"):
        callback = make(PROMPTS, value_of)
        callback.set_model(types.SimpleNamespace())
        callback.on_train_begin()
