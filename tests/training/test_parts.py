"""How a step is run changes no result: parts, buckets, order of the stages."""

import keras
import numpy as np
import pytest

import keras_bond
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy
from tests.training.given import WALL_TIMES

KINDS = {
    "jbond": (keras_bond.JBond, {}),
    "pooled": (
        keras_bond.Bond,
        {"num_policy_samples": 2, "num_anchor_samples": 2},
    ),
    "learned": (
        keras_bond.Bond,
        {
            "num_policy_samples": 2,
            "num_anchor_samples": 2,
            "kl_weight": 0.5,
            "estimator": "learned",
            "jeffreys_beta": 0.4,
        },
    ),
}


def train(kind, lora=False, reward=length_reward, x=PROMPTS, **arguments):
    """Weights and logs of a short run; plain SGD, so that errors show."""
    trainer, settings = KINDS[kind]
    num_layers = 2 if kind == "jbond" else 1
    policy = make_policy(num_layers=num_layers, scale=2.0)
    if lora:
        keras.utils.set_random_seed(0)
        policy.backbone.enable_lora(2)
    bond = trainer(
        policy,
        reward,
        max_prompt_length=12,
        max_completion_length=5,
        seed=1,
        **settings,
    )
    rate = keras.optimizers.schedules.ExponentialDecay(1e-2, 1000, 1.0)
    bond.compile(keras.optimizers.SGD(rate), **arguments)
    history = bond.fit(x, batch_size=4, epochs=1, verbose=0).history
    return values_of(bond.policy.trainable_variables), history


@pytest.mark.parametrize(
    "kind",
    ["pooled"]
    + [
        pytest.param(kind, marks=pytest.mark.one_backend)
        for kind in ("jbond", "learned")
    ],
)
def test_parts_change_no_result(kind):
    """Same completions, and weights within 1e-5 of those of whole batches.

    Pins: a baseline of a part alone, random numbers by the row of a part, a
    gradient that some part loses.
    """
    texts = {"whole": [], "parted": []}

    def reward_into(list_of_texts):
        def reward(prompts, completions):
            list_of_texts.extend(zip(prompts, completions))
            return length_reward(prompts, completions)

        return reward

    whole, logs = train(
        kind, reward=reward_into(texts["whole"]), **COMPILED_QUICKLY
    )
    parted, parted_logs = train(
        kind,
        reward=reward_into(texts["parted"]),
        rollout_batch_size=2,
        gradient_accumulation_steps=2,
        rematerialize=True,
    )
    assert texts["whole"] == texts["parted"]
    for a, b in zip(whole, parted):
        np.testing.assert_allclose(b, a, atol=1e-5)
    for name in logs.keys() - WALL_TIMES:
        values = logs[name]
        # A ratio of log-ratios that are hardly above their rounding errors.
        close = 1e-2 if name == "bond/rank_correlation" else 1e-5
        assert parted_logs[name] == pytest.approx(values, rel=1e-4, abs=close)


def test_parts_of_adapters():
    """With frozen weights, whose gradients nobody asks for."""
    whole, _ = train("jbond", lora=True, **COMPILED_QUICKLY)
    parted, _ = train(
        "jbond",
        lora=True,
        gradient_accumulation_steps=4,
        rematerialize=True,
        **COMPILED_QUICKLY,
    )
    for a, b in zip(whole, parted):
        np.testing.assert_allclose(b, a, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"rollout_batch_size": 3}, "`rollout_batch_size` must divide"),
        (
            {"gradient_accumulation_steps": 3},
            "`gradient_accumulation_steps` must divide",
        ),
        ({"rollout_batch_size": 0}, "an integer of at least 1"),
        ({"gradient_accumulation_steps": 1.5}, "an integer of at least 1"),
    ],
)
def test_parts_that_do_not_divide_are_named(arguments, text):
    def never(prompts, completions):
        raise AssertionError("refused before anything is drawn")

    with pytest.raises(ValueError, match=text):
        train("jbond", reward=never, **arguments)


def test_sets_that_parts_do_not_divide_are_padded():
    """Same numbers as of whole batches; pins: a run that ends in `evaluate`."""
    logs = []
    for parts in (
        {},
        {"rollout_batch_size": 4, "gradient_accumulation_steps": 2},
    ):
        bond = keras_bond.Bond(
            make_policy(num_layers=1, scale=2.0),
            length_reward,
            max_prompt_length=12,
            max_completion_length=5,
            seed=1,
        )
        bond.compile("sgd", **COMPILED_QUICKLY, **parts)
        logs.append(
            [
                bond.evaluate(PROMPTS[:size], batch_size=5, verbose=0)
                for size in (3, 7)
            ]
        )
    for whole, parted in zip(*logs):
        assert parted == pytest.approx(whole, rel=1e-4, abs=1e-5, nan_ok=True)
    # A set to train on may be small too, beside one that is validated.
    history = bond.fit(
        PROMPTS[:3],
        batch_size=4,
        verbose=0,
        validation_data=PROMPTS[:1],
        callbacks=[keras_bond.callbacks.AnchorEMA(0.1)],
    ).history
    assert int(bond.prompts_seen) == 3
    assert np.isfinite(history["val_loss"] + history["loss"]).all()


def test_the_device_has_its_work_before_the_reward_is_asked():
    """Pins: a reward that is waited for before what does not depend on it."""
    order = []

    class Watched(keras_bond.JBond):
        def run_stage(self, name, function, *tensors):
            order.append(name)
            return super().run_stage(name, function, *tensors)

        def targets(self, batch):
            order.append("targets")
            return super().targets(batch)

    def reward(prompts, completions):
        order.append("reward")
        return length_reward(prompts, completions)

    bond = Watched(
        make_policy(num_layers=1),
        reward,
        max_prompt_length=12,
        max_completion_length=5,
        seed=1,
    )
    bond.compile("sgd", rollout_batch_size=2, **COMPILED_QUICKLY)
    bond.fit(PROMPTS[:4], batch_size=4, verbose=0)
    order = [name for name in order if name != "learn"]
    rollout = ["rollout policy", "rollout anchor", "collate"]
    scored = ["score_with_anchor"] * 2
    assert order == [*rollout * 2, *scored, *["reward"] * 2, "targets"]


def compilations(bond):
    """How often each stage was compiled, where the backend compiles."""
    counts = {}
    for name, stage in bond.stages.items():
        if keras.config.backend() == "jax":
            counts[name] = stage._cache_size()
        elif keras.config.backend() == "tensorflow":
            counts[name] = stage.experimental_get_tracing_count()
    return counts


def test_the_second_epoch_compiles_nothing():
    """One program for each stage and bucket, last smaller batch included."""
    if keras.config.backend() == "jax":
        import jax

        # JAX keeps a limited number of programs per process, and those of
        # other tests would push out some of these.
        jax.clear_caches()
    bond = keras_bond.JBond(
        make_policy(num_layers=1),
        length_reward,
        max_prompt_length=12,
        max_completion_length=5,
        prompt_buckets=(5, 12),
        seed=1,
    )
    bond.compile("sgd", **COMPILED_QUICKLY)
    counts = []
    bond.fit(
        [*PROMPTS, "the lazy dog"],
        batch_size=2,
        epochs=3,
        verbose=0,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: counts.append(
                    compilations(bond)
                )
            )
        ],
    )
    assert counts[0] == counts[1] == counts[2]
    if keras.config.backend() != "torch":
        assert set(counts[0].values()) == {2}


def test_buckets_change_no_evaluation():
    """Neither random numbers nor distribution depend on the padding."""
    texts, logs = [], []
    for buckets in (None, (3, 6, 12)):
        seen = []

        def reward(prompts, completions, seen=seen):
            seen.extend(zip(prompts, completions))
            return length_reward(prompts, completions)

        bond = keras_bond.JBond(
            make_policy(num_layers=1, scale=2.0),
            reward,
            max_prompt_length=12,
            max_completion_length=5,
            prompt_buckets=buckets,
            seed=1,
        )
        bond.compile("sgd", **COMPILED_QUICKLY)
        logs.append(
            bond.evaluate(PROMPTS, batch_size=2, return_dict=True, verbose=0)
        )
        texts.append(seen)
    assert texts[0] == texts[1]
    assert logs[1] == pytest.approx(logs[0], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "buckets", [(), (4, 8), (8, 4, 12), (4, 4, 12), (4.0, 12), (0, 12)]
)
def test_buckets_that_do_not_cover_are_named(buckets):
    with pytest.raises(ValueError, match="`prompt_buckets` must be increasing"):
        keras_bond.JBond(
            make_policy(),
            length_reward,
            max_prompt_length=12,
            max_completion_length=5,
            prompt_buckets=buckets,
        )
