"""`fit`, `evaluate`, `predict`: what a user does, and what goes wrong."""

import gc
import weakref

import keras
import numpy as np
import pytest

import keras_bond
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

LOGGED = {
    "loss",
    "forward_kl_loss",
    "backward_kl_loss",
    "reward",
    "reward_std",
    "anchor/reward",
    "bond/win_rate",
    "bond/penalized_fraction",
    "kl",
    "kl_ref",
    "entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
    "frac_reward_zero_std",
    "frac_prompts_unscored",
    "sampling/log_prob_difference",
    "train/updated_fraction",
    "train/skipped_steps",
}
LENGTHS = {"max_prompt_length": 12, "max_completion_length": 5}


# Set when a run or an epoch begins, before anything is learned.
POSITION = {"update_rate", "run_start", "epoch_start", "epoch", "data"}


def make_bond(policy=None, reward=length_reward, rate=1e-3, **kwargs):
    policy = policy or make_policy(num_layers=1)
    bond = keras_bond.JBond(
        policy, reward, **{**LENGTHS, "seed": 1, "reference": True, **kwargs}
    )
    schedule = keras.optimizers.schedules.ExponentialDecay(rate, 1000, 1.0)
    bond.compile(keras.optimizers.Adam(schedule), **COMPILED_QUICKLY)
    return bond


def fit(bond, x=PROMPTS, callbacks=(), **kwargs):
    callbacks = [keras_bond.callbacks.AnchorEMA(0.1), *callbacks]
    kwargs = {"batch_size": 4, "verbose": 0, **kwargs}
    return bond.fit(x, callbacks=callbacks, **kwargs)


class OneBatch:
    """A data set that comes in batches of its own."""

    def __iter__(self):
        yield {"prompts": PROMPTS[:3]}


@pytest.fixture(scope="module")
def trained():
    """A trainer after two epochs, what it logged, and its first weights."""
    bond, steps = make_bond(), []
    bond.start = values_of(bond.policy.trainable_variables)
    step = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(dict(logs))
    )
    held_out = {"validation_data": OneBatch()}
    bond.logs = fit(bond, PROMPTS, [step], epochs=2, **held_out).history
    bond.steps = steps
    return bond


def test_a_run_logs_every_documented_number_and_trains(trained):
    """Also: the start has KL 0, and frozen sets stay bit-identical."""
    bond = trained
    assert LOGGED <= set(bond.logs)
    assert "val_reward" in bond.logs
    assert bond.steps[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert bond.steps[0]["train/updated_fraction"] > 0.5
    after = values_of(bond.policy.trainable_variables)
    assert any((a != b).any() for a, b in zip(bond.start, after))
    for a, b in zip(bond.start, values_of(bond.weight_sets.reference.values)):
        np.testing.assert_array_equal(a, b)
    assert int(bond.prompts_seen) == 2 * len(PROMPTS)

    logs = bond.evaluate(PROMPTS[:5], return_dict=True, verbose=0)
    again = bond.evaluate(PROMPTS[:5], return_dict=True, verbose=0)
    assert logs == again and np.isfinite(list(logs.values())).all()
    samples = bond.generate(PROMPTS[:3], num_samples=2)
    assert [len(texts) for texts in samples] == [2, 2, 2]
    assert bond.generate(PROMPTS[:3], weights="reference") != []
    assert bond.predict(PROMPTS[:3], verbose=0).shape == (3,)
    assert isinstance(bond.policy.generate("fox", max_length=10), str)


def test_a_trainer_that_is_gone_leaves_the_memory():
    """It, and TensorFlow's graphs of it, which hold its variables."""
    num_graphs = count_graphs()
    bond = make_bond()
    fit(bond, validation_data=OneBatch())
    seen = weakref.ref(bond)
    del bond
    assert count_graphs() == num_graphs
    assert seen() is None


def count_graphs():
    gc.collect()
    return sum(type(o).__name__ == "FuncGraph" for o in gc.get_objects())


def test_the_same_seed_gives_the_same_run(trained):
    """Weights, order of prompts and draws depend on the seed alone."""
    runs = [values_of(trained.policy.trainable_variables)]
    for seed in (1, 2):
        bond = make_bond(seed=seed)
        fit(bond, epochs=2)
        runs.append(values_of(bond.policy.trainable_variables))
    for a, b in zip(runs[0], runs[1]):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(runs[0], runs[2]))


def test_accumulated_batches_draw_what_one_batch_draws():
    """8 prompts at once, and 2 times 4 with gradient accumulation."""
    drawn = []
    for batch_size, steps in ((8, None), (4, 2)):
        texts = []

        def record(prompts, completions, texts=texts):
            texts.append(list(zip(prompts, completions)))
            return length_reward(prompts, completions)

        bond = make_bond(reward=record)
        bond.compile(
            keras.optimizers.Adam(1e-5, gradient_accumulation_steps=steps),
            **COMPILED_QUICKLY,
        )
        fit(bond, batch_size=batch_size, shuffle=False)
        drawn.append(sum(texts, []))
    assert drawn[0] == drawn[1]


def test_a_prompt_without_a_reward_drops_out(shared_bond):
    """The loss is that of the other prompts alone: denominators shrink."""

    def picky(prompts, completions):
        return [
            None if p == PROMPTS[1] else float(len(c))
            for p, c in zip(prompts, completions)
        ]

    bond = make_bond(reward=picky)
    logs = fit(bond, PROMPTS[:4], shuffle=False).history
    seen = bond.evaluate(PROMPTS[:4], return_dict=True, verbose=0)
    texts = bond_samples(bond, picky, PROMPTS[:4])
    assert np.isfinite(logs["loss"][0])
    assert seen["reward"] == pytest.approx(np.mean(texts), rel=1e-5)
    everything = shared_bond
    everything.reward = lambda prompts, completions: [None] * 12
    before = values_of(everything.policy.trainable_variables)
    fit(everything, PROMPTS[:4])
    for a, b in zip(before, values_of(everything.policy.trainable_variables)):
        np.testing.assert_array_equal(a, b)


def bond_samples(bond, reward, prompts):
    """Rewards of the policy's own samples in `evaluate`, `None` left out."""
    collected = []

    def record(prompts, completions):
        scores = reward(prompts, completions)
        collected.extend(scores[::3])
        return scores

    bond.reward = record
    bond.evaluate(prompts, verbose=0)
    return [score for score in collected if score is not None]


def test_a_reward_that_raises_leaves_everything_as_it_was():
    """Its own error is raised; the run can continue. Fails in step 1 and 2."""
    bond = make_bond()
    for failing_call in (1, 2):
        calls = []

        def fragile(
            prompts, completions, calls=calls, failing_call=failing_call
        ):
            calls.append(1)
            if len(calls) == failing_call:
                raise KeyError("no such judge")
            return length_reward(prompts, completions)

        bond.reward = fragile
        start, prompts_seen = values_of(bond.variables), int(bond.prompts_seen)
        with pytest.raises(KeyError, match="no such judge"):
            fit(bond)
        if failing_call == 1:
            for variable, a in zip(bond.variables, start):
                if variable.name not in POSITION:
                    np.testing.assert_array_equal(a, values_of([variable])[0])
        learned_from = int(bond.prompts_seen) - prompts_seen
        assert learned_from == 4 * (failing_call - 1)
        fit(bond)


@pytest.mark.parametrize(
    "answer, error, text",
    [
        (lambda n: [1.0] * (n - 1), ValueError, "one number for each"),
        (lambda n: 1.0, TypeError, "must return a list"),
        (lambda n: ["good"] * n, TypeError, "must return numbers"),
        (lambda n: [float("nan")] * n, ValueError, "finite"),
        (lambda n: [float("inf")] * n, ValueError, "finite"),
    ],
)
def test_wrong_rewards_are_named(shared_bond, answer, error, text):
    bond = shared_bond
    bond.reward = lambda prompts, completions: answer(len(prompts))
    before = values_of(bond.policy.trainable_variables)
    with pytest.raises(error, match=text):
        fit(bond)
    for a, b in zip(before, values_of(bond.policy.trainable_variables)):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def shared_bond():
    return make_bond()


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"x": PROMPTS, "batch_size": 1}, "at least 2 prompts"),
        ({"x": PROMPTS, "y": [1]}, "`y` must be None"),
        ({"x": []}, "at least one prompt"),
        ({"x": ["fox " * 20, "fox"]}, "fit into `max_prompt_length`"),
    ],
)
def test_wrong_data_are_named(shared_bond, arguments, text):
    arguments = {"batch_size": 4, "verbose": 0, **arguments}
    with pytest.raises(ValueError, match=text):
        shared_bond.fit(**arguments)


def test_prompts_have_no_weights(shared_bond):
    """Pins: weights that Keras knows and an evaluation left out in silence."""
    with pytest.raises(ValueError, match="`sample_weight` must be None"):
        shared_bond.evaluate(PROMPTS, sample_weight=[1.0] * 8, verbose=0)


def test_lora_trains_adapters_only_and_copies_nothing_else():
    """Memory is one backbone, and the adapters once for each weight set."""
    policy = make_policy(num_layers=1)
    backbone_size = policy.count_params()
    policy.backbone.enable_lora(2)
    adapters = sum(np.prod(v.shape) for v in policy.trainable_variables)
    bond = make_bond(policy, reference="auto", rate=1e-2)
    frozen = values_of(policy.non_trainable_variables)
    fit(bond)
    has_reference = bond.weight_sets.reference is not None
    assert not has_reference or adapters < 0.1 * backbone_size
    copies = 2 + has_reference
    network = backbone_size + copies * adapters
    metrics_size = sum(np.prod(v.shape) for v in bond.metrics_variables)
    assert bond.count_params() - metrics_size <= network + 8
    for a, b in zip(frozen, values_of(policy.non_trainable_variables)):
        np.testing.assert_array_equal(a, b)


def test_mixed_precision_trains_with_a_float32_anchor():
    bond = make_bond(
        make_policy(num_layers=1, dtype="mixed_bfloat16"), rate=1e-2
    )
    logs = fit(bond).history
    assert np.isfinite(logs["loss"]).all()
    assert logs["train/updated_fraction"][0] > 0.5
    assert {v.dtype for v in bond.anchor.values} == {"float32"}


def test_one_reward_takes_the_place_of_weighted_ones():
    """It was refused, for the weights of the former list were kept."""
    lengths, zeros = length_reward, lambda prompts, completions: [0.0] * 12
    bond = make_bond(reward=[lengths, zeros], reward_weights=[2.0, 1.0])
    twice = bond.evaluate(PROMPTS[:4], verbose=0, return_dict=True)["reward"]
    with pytest.raises(TypeError, match="reward"):
        bond.reward = "no reward"
    assert bond.reward_weights == [2.0, 1.0]
    bond.reward = lengths
    once = bond.evaluate(PROMPTS[:4], verbose=0, return_dict=True)["reward"]
    assert twice == pytest.approx(2 * once)
    assert bond.get_config()["reward_weights"] is None
    with pytest.raises(ValueError, match="goes with a list"):
        make_bond(reward=lengths, reward_weights=[1.0])
