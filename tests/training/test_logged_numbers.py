"""The values of all logged numbers, against plain NumPy.

Twice: from batches that are made up, where the oracle knows every tie-breaker;
and from `fit` and `evaluate` as a user calls them, where it knows the texts
that the reward was given, and the weights.
"""

import math

import keras
import numpy as np
import pytest
import scipy.stats
from keras import ops

import keras_bond
from keras_bond.rewards import scores as scores_lib
from keras_bond.training import metrics
from tests.numeric import tensors_of
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import make_policy

PENALIZED = "bond/penalized_fraction"
BETA, GAMMA, TEMPERATURE = 0.3, 0.7, 0.8
LENGTH = 5
TRAINERS = {
    "JBond": (keras_bond.JBond, {}),
    "Bond": (
        keras_bond.Bond,
        {"num_policy_samples": 2, "num_anchor_samples": 3},
    ),
}
# Samples of the policy, and of policy and anchor, for each prompt.
COUNTS = {"JBond": (1, 3), "Bond": (2, 5)}
# Enough that a good part of the completions end by themselves.
STOPS = (1, *range(8, 14))


def make_bond(name, policy, reward):
    trainer, arguments = TRAINERS[name]
    return trainer(
        policy,
        reward,
        max_prompt_length=8,
        max_completion_length=LENGTH,
        jeffreys_beta=BETA,
        kl_weight=GAMMA,
        reference=True,
        temperature=TEMPERATURE,
        stop_token_ids=STOPS,
        seed=3,
        **arguments,
    )


def sample_logs(batches, p):
    """What does not depend on how ties are broken, from all batches at once.

    Args:
        batches: list of dicts of arrays, over prompts, and over samples: those
            of the policy, `p` per prompt, come first.
        p: int.
    """
    keys = set.intersection(*(set(batch) for batch in batches))
    whole = {k: np.concatenate([b[k] for b in batches]) for k in keys}
    kept = {k: v[whole["valid"]] for k, v in whole.items()}
    rewards = kept["rewards"].astype("float64")
    policy, anchors = rewards[:, :p], rewards[:, p:]
    wins = [
        (y > a) + (y == a) / 2
        for row, others in zip(policy, anchors)
        for y in row
        for a in others
    ]
    present = whole["present"]
    # A single sample of the policy has none to be compared with.
    correlations = (
        {}
        if p == 1
        else {
            "bond/rank_correlation": np.mean(
                [rank_correlation(batch, p) for batch in batches]
            )
        }
    )
    return {
        **correlations,
        "reward": policy.mean(),
        "reward_std": policy.std(),
        "anchor/reward": anchors.mean(),
        "bond/win_rate": np.mean(wins),
        "kl": kept["kl"].mean(),
        "kl_ref": kept["kl_ref"].mean(),
        "entropy": kept["entropies"].mean(),
        "completions/mean_length": kept["lengths"][:, :p].mean(),
        "sampling/log_prob_difference": np.mean(
            np.abs(kept["log_probs"] - kept["sampling_log_probs"])[:, :p]
            / kept["lengths"][:, :p]
        ),
        "completions/clipped_ratio": 1 - kept["terminated"][:, :p].mean(),
        "frac_reward_zero_std": np.mean(
            [len(set(row)) == 1 for row in rewards]
        ),
        "frac_prompts_unscored": 1 - whole["valid"][present].mean(),
    }


def rank_correlation(batch, p):
    """Of rank and log-ratio of the policy's samples, one prompt at a time."""
    products, ranks, ratios, errors = 0.0, 0.0, 0.0, 0.0
    for i in np.flatnonzero(batch["valid"]):
        rank = scipy.stats.rankdata(batch["rewards"][i].astype("float64"))[:p]
        own = batch["log_probs"][i, :p]
        ratio = own - batch["anchor_log_probs"][i, :p]
        error = own - batch["sampling_log_probs"][i, :p]
        rank, ratio = (x - x.mean() for x in (rank, ratio))
        products += rank @ ratio
        ranks, ratios = ranks + rank @ rank, ratios + ratio @ ratio
        errors += error @ error
    assert ranks > 0 and ratios > 4 * errors
    return products / np.sqrt(ranks * ratios)


def jbond_logs(batches, orders):
    """Losses of algorithm 2, and how many samples it penalizes.

    Args:
        batches: list of dicts of arrays, see `sample_logs`, with `log_probs`
            and `anchor_log_probs` `(prompts, 3)`.
        orders: list of arrays `(prompts, 3)`, which break ties.
    """
    terms, losses, counts = [], [], []
    for batch, order in zip(batches, orders):
        rows = np.flatnonzero(batch["valid"])
        keys = [list(zip(*both)) for both in zip(batch["rewards"], order)]
        penalized = np.array([y < min(a, b) for y, a, b in keys])
        best = [1 + (b > a) for _, a, b in keys]
        own = batch["log_probs"][:, 0]
        ratios = own - batch["anchor_log_probs"][:, 0]
        returns = -math.log(16) * penalized - ratios
        found = [
            (
                -batch["log_probs"][i, best[i]],
                -own[i] * (returns[i] - returns[rows[rows != i]].mean()),
                own[i] * ratios[i],
                penalized[i],
            )
            for i in rows
        ]
        terms += found
        mean = np.mean(found, axis=0)
        counts.append(len(rows))
        losses.append((1 - BETA) * mean[0] + BETA * mean[1] + GAMMA * mean[2])
    names = ("forward_kl_loss", "backward_kl_loss", "kl_loss", PENALIZED)
    logs = dict(zip(names, np.mean(terms, axis=0)))
    return {**logs, "loss": np.average(losses, weights=counts)}


def assert_logs(logs, expected, **tolerances):
    for name, value in expected.items():
        np.testing.assert_allclose(
            float(logs[name]), value, err_msg=name, **tolerances
        )


def random_batch(name, seed, is_training):
    """Ties, ragged ends, prompts without a reward, rows that only fill."""
    generator = np.random.default_rng(seed)
    p, samples = COUNTS[name]
    size = 8
    shape = (size, samples)
    lengths = generator.integers(1, LENGTH + 1, shape)
    log_probs = generator.normal(-9, 2, shape).astype("float32")
    rounding = generator.normal(0, 0.2, shape).astype("float32")
    present = np.arange(size) < 7
    batch = {
        "prompt_ids": np.ones((size, 6), "int32"),
        "prompt_lengths": np.full(size, 3, "int32"),
        "completion_ids": generator.integers(5, 40, (*shape, LENGTH)),
        "mask": np.arange(LENGTH) < lengths[:, :, None],
        "terminated": (lengths < LENGTH) & (generator.random(shape) < 0.9),
        # Of these float32 keeps no difference.
        "rewards": 1e6 + 1e-3 * generator.integers(0, 3, shape),
        "tie_breakers": generator.random(shape).astype("float32"),
        "anchor_log_probs": generator.normal(-9, 2, shape).astype("float32"),
        "reference_log_probs": generator.normal(-9, 2, (size, p)),
        "entropies": generator.random((size, p)).astype("float32"),
        "sampling_log_probs": log_probs + rounding,
        "present": present,
        "valid": present & (np.arange(size) != seed),
    }
    if not is_training:
        batch["anchor_kls"] = generator.random((size, p)).astype("float32")
        batch["reference_kls"] = generator.random((size, p)).astype("float32")
    batch["rewards"][5] = 1e6
    batch["reference_log_probs"] = batch["reference_log_probs"].astype("f4")
    batch["completion_ids"] = batch["completion_ids"].astype("int32")
    return batch, log_probs


@pytest.fixture(scope="module")
def policy():
    return make_policy(scale=3.0, num_layers=1)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("name", TRAINERS)
def test_numbers_of_made_up_batches(policy, name, is_training):
    """Two batches, of which 5 and 6 prompts of 7 count, with many ties.

    Ties between all three samples of J-BOND are broken at random, so that the
    oracle must know the tie-breakers.
    """
    p, _ = COUNTS[name]
    bond = make_bond(name, policy, lambda prompts, completions: [])
    bond.reset_metrics()
    batches, losses = [], []
    for seed in (2, 3):
        batch, log_probs = random_batch(name, seed, is_training)
        # What could not be scored may hold anything.
        batch["entropies"][seed] = math.nan
        own, kinds = log_probs[:, :p], ("anchor", "reference")
        kl, kl_ref = (
            own - batch[f"{kind}_log_probs"][:, :p]
            if is_training
            else batch[f"{kind}_kls"]
            for kind in kinds
        )
        batches.append(
            {
                **batch,
                "lengths": batch["mask"].sum(axis=2),
                "log_probs": log_probs,
                "kl": kl,
                "kl_ref": kl_ref,
            }
        )
        targets = bond.targets(tensors_of(batch))
        log_probs = learned_from(name, batch, log_probs)
        outputs = {"log_probs": ops.convert_to_tensor(log_probs)}
        loss = bond.compute_loss(x=targets, y_pred=outputs)
        bond.log_step(targets, outputs, loss, is_good=True)
        losses.append(float(loss))
        if seed == 2:
            assert_terms_make(losses[0], bond.get_metrics_result())
    logs = bond.get_metrics_result()
    assert_logs(logs, sample_logs(batches, p), rtol=2e-5, atol=2e-6)
    assert ("bond/rank_correlation" in logs) == (p > 1)
    if name == "JBond":
        orders = [batch["tie_breakers"] for batch in batches]
        expected = jbond_logs(batches, orders)
        expected_loss = expected.pop("loss")
        counts = [batch["valid"].sum() for batch in batches]
        loss = np.average(losses, weights=counts)
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
        assert_logs(logs, expected, rtol=2e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e20])
@pytest.mark.parametrize("offset", [0.0, 3e3, 1e6])
def test_the_standard_deviation_of_any_scale_and_offset(scale, offset):
    generator = np.random.default_rng(0)
    metric = metrics.StandardDeviation("reward_std")
    assert np.isnan(float(metric.result()))
    kept = []
    for size in (3, 1, 6):
        rewards = offset + scale * generator.normal(size=(size, 2))
        counts = generator.random(rewards.shape) < 0.7
        kept.append(rewards[counts])
        parts = scores_lib.for_device(rewards)
        metric.update_state(
            np.where(counts, parts["rewards"], np.nan),
            parts["reward_residuals"],
            sample_weight=counts,
        )
    expected = np.concatenate(kept).std()
    np.testing.assert_allclose(float(metric.result()), expected, rtol=1e-5)


def assert_terms_make(loss, logs):
    terms = ("forward_kl_loss", "backward_kl_loss", "kl_loss")
    forward, backward, kl = (float(logs[name]) for name in terms)
    mixed = (1 - BETA) * forward + BETA * backward + GAMMA * kl
    np.testing.assert_allclose(loss, mixed, rtol=1e-5, atol=1e-5)


def learned_from(name, batch, log_probs):
    """Log-probabilities of the samples that are left in the targets."""
    if name == "Bond":
        return log_probs
    keys = [list(zip(*x)) for x in zip(batch["rewards"], batch["tie_breakers"])]
    best = [1 + (b > a) for _, a, b in keys]
    rows = np.arange(len(best))
    return np.stack([log_probs[:, 0], log_probs[rows, best]], axis=1)


# Rewards of the samples of each prompt, those of the policy first. `None` drops
# the prompt. Ties that J-BOND breaks at random stand in the last prompt only.
REWARDS = {
    "JBond": [
        [2.0, 1.0, 0.0],
        [0.0, 1.0, 2.0],
        [None, 3.0, 4.0],
        [1.0, 1.0, 0.0],
        [1.0, 0.0, 1.0],
        [0.0, 2.0, 1.0],
        [1.0, 1.0, 1.0],
    ],
    "Bond": [
        [2.0, 1.0, 0.0, 2.0, 1.0],
        [0.0, 0.0, 1.0, 2.0, 3.0],
        [0.0, 3.0, None, 4.0, 1.0],
        [1.0, 2.0, 1.0, 0.0, 2.0],
        [1.0, 0.0, 1.0, 1.0, 1.0],
        [0.0, 3.0, 0.0, 1.0, 2.0],
        [1.0, 1.0, 1.0, 1.0, 1.0],
    ],
}
BATCH = 4


class Recorder:
    """Answers from the table, and remembers what it was asked."""

    def __init__(self, name):
        self.table, self.asked = REWARDS[name], []

    def __call__(self, prompts, completions, completion_ids):
        self.asked.append((list(prompts), completion_ids))
        seen, scores = {}, []
        for prompt in prompts:
            index = seen[prompt] = seen.get(prompt, -1) + 1
            scores.append(self.table[PROMPTS.index(prompt)][index])
        return scores


def change(policy, seed):
    """Moves all weights; returns the new ones."""
    generator = np.random.default_rng(seed)
    for variable in policy.trainable_variables:
        noise = 0.1 * generator.normal(size=variable.shape)
        variable.assign_add(noise.astype("float32"))
    return values_of(policy.trainable_variables)


@pytest.fixture(scope="module", params=TRAINERS)
def run(request):
    """Trains and evaluates on 7 prompts in batches of 4.

    Policy, anchor and reference differ. The learning rate is so small that no
    weight moves, so that one set of weights explains a whole epoch.
    """
    name = request.param
    policy, reward = make_policy(scale=3.0, num_layers=1), Recorder(name)
    bond = make_bond(name, policy, reward)
    bond.compile(keras.optimizers.SGD(1e-30), **COMPILED_QUICKLY)
    weights = {"reference": values_of(policy.trainable_variables)}
    weights["anchor"] = change(policy, 1)
    arguments = dict(batch_size=BATCH, shuffle=False, verbose=0)
    refresh = keras_bond.callbacks.AnchorRefresh(every=1)
    bond.fit(PROMPTS[:BATCH], callbacks=[refresh], **arguments)
    at_anchor = bond.evaluate(
        PROMPTS[:BATCH], batch_size=BATCH, verbose=0, return_dict=True
    )
    weights["policy"] = change(policy, 2)
    reward.asked.clear()
    fixed = keras_bond.callbacks.AnchorFixed()
    history = bond.fit(PROMPTS[:7], callbacks=[fixed], **arguments).history
    trained, reward.asked = reward.asked, []
    logs = bond.evaluate(
        PROMPTS[:7], batch_size=BATCH, verbose=0, return_dict=True
    )
    for found, expected in zip(
        values_of(policy.trainable_variables), weights["policy"]
    ):
        np.testing.assert_array_equal(found, expected)
    return {
        "name": name,
        "policy": policy,
        "weights": weights,
        "at_anchor": at_anchor,
        "fit": ({k: v[0] for k, v in history.items()}, trained),
        "evaluate": (logs, reward.asked),
    }


def next_token_logs(policy, weights, rows):
    """`log π` of every next token, `(rows, length, vocabulary)`, tempered.

    The plain model, without cache, on rows that are padded on the right.
    """
    # One shape for all, for which the backend compiles once.
    length, num_rows = 8 + LENGTH, BATCH * 5
    ids = np.zeros((num_rows, length), "int32")
    mask = np.zeros((num_rows, length), bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = True
    kept = values_of(policy.trainable_variables)
    for variable, value in zip(policy.trainable_variables, weights):
        variable.assign(value)
    logits = policy({"token_ids": ids, "padding_mask": mask})
    logits = ops.convert_to_numpy(logits).astype("float64") / TEMPERATURE
    for variable, value in zip(policy.trainable_variables, kept):
        variable.assign(value)
    highest = logits.max(axis=-1, keepdims=True)
    logits = logits - highest
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def explain(run, asked, is_training):
    """The batches of a run, as `sample_logs` takes them."""
    p, samples = COUNTS[run["name"]]
    tokenizer = run["policy"].preprocessor.tokenizer
    batches = []
    for prompts, completions in asked:
        starts = [
            [tokenizer.start_token_id, *map(int, tokenizer(prompt))]
            for prompt in prompts
        ]
        completions = [list(map(int, ids)) for ids in completions]
        rows = [start + ids for start, ids in zip(starts, completions)]
        logs = {
            name: next_token_logs(run["policy"], weights, rows)
            for name, weights in run["weights"].items()
        }
        sums = {name: [] for name in ("policy", "anchor", "reference")}
        kls = {name: [] for name in ("anchor", "reference")}
        entropies = []
        for i, (start, ids) in enumerate(zip(starts, completions)):
            places = np.arange(len(start) - 1, len(start) + len(ids) - 1)
            for name in sums:
                sums[name].append(logs[name][i, places, ids].sum())
            own = logs["policy"][i, places]
            for name in kls:
                gaps = own - logs[name][i, places]
                kls[name].append((np.exp(own) * gaps).sum())
            entropies.append(-(np.exp(own) * own).sum(axis=-1).mean())

        def shaped(values):
            return np.array(values).reshape(-1, samples)

        scores = [REWARDS[run["name"]][PROMPTS.index(x)] for x in prompts]
        scores = np.array(scores[::samples], "float64")
        logs_of = {name: shaped(values) for name, values in sums.items()}
        own = logs_of["policy"][:, :p]
        exact = {name: shaped(values)[:, :p] for name, values in kls.items()}
        ratios = {name: own - logs_of[name][:, :p] for name in exact}
        chosen = ratios if is_training else exact
        ends = [ids[-1] in STOPS for ids in completions]
        batches.append(
            {
                "rewards": scores,
                "valid": np.isfinite(scores).all(axis=1),
                "present": np.ones(len(scores), bool),
                "lengths": shaped([len(ids) for ids in completions]),
                "terminated": shaped(ends),
                "entropies": shaped(entropies)[:, :p],
                "log_probs": logs_of["policy"],
                "anchor_log_probs": logs_of["anchor"],
                "sampling_log_probs": logs_of["policy"],
                "kl": chosen["anchor"],
                "kl_ref": chosen["reference"],
            }
        )
    return batches


@pytest.mark.parametrize("stage", ["fit", "evaluate"])
def test_numbers_of_a_run(run, stage):
    """From texts and weights alone; some completions are truncated."""
    logs, asked = run[stage]
    batches = explain(run, asked, is_training=stage == "fit")
    assert [len(batch["valid"]) for batch in batches] == [4, 3]
    expected = sample_logs(batches, COUNTS[run["name"]][0])
    assert 0 < expected["completions/clipped_ratio"] < 1
    assert min(expected["kl"], expected["kl_ref"]) > 0.1
    assert abs(expected["kl"] - expected["kl_ref"]) > 0.02
    assert_logs(logs, expected, rtol=1e-3, atol=1e-4)


def test_no_correlation_is_known_at_the_anchor(run):
    """Pins: rounding that is taken for something learned."""
    if run["name"] == "Bond":
        assert math.isnan(run["at_anchor"]["bond/rank_correlation"])


@pytest.mark.parametrize("stage", ["fit", "evaluate"])
def test_losses_of_a_run(run, stage):
    """Those of J-BOND, for one of the ways to break the ties of a prompt."""
    if run["name"] != "JBond":
        return
    logs, asked = run[stage]
    batches = explain(run, asked, is_training=stage == "fit")
    ways = []
    for order in np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0]]):
        orders = [np.tile(order, (len(b["valid"]), 1)) for b in batches]
        ways.append(jbond_logs(batches, orders))
    fits = [
        all(np.isclose(logs[k], v, rtol=1e-3, atol=1e-3) for k, v in w.items())
        for w in ways
    ]
    assert any(fits), (logs, ways)
