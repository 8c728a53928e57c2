"""A plan counts what is there, to the byte, and says what would not go."""

import dataclasses

import keras
import pytest
from keras import ops

import keras_bond
from keras_bond import backend
from keras_bond.planning.settings import Settings
from keras_bond.rollouts.decoder import CacheBuilder
from tests.tiny import length_reward
from tests.tiny import make_policy

ARGUMENTS = {"max_prompt_length": 12, "max_completion_length": 5, "seed": 0}
PLENTY = 1e12


def compile_bond(bond, **arguments):
    bond.compile(keras.optimizers.Adam(1e-5), **arguments)


def make_bond(trainer=keras_bond.JBond, policy=None, **arguments):
    policy = policy or make_policy()
    return trainer(policy, length_reward, **{**ARGUMENTS, **arguments})


def bytes_in(tensors):
    """What arrays of NumPy say about themselves."""
    arrays = [ops.convert_to_numpy(tensor) for tensor in tensors]
    return sum(array.nbytes for array in arrays)


def entry(plan, name):
    return next(e for e in plan.entries if e.name == name)


@pytest.mark.parametrize("family", ["gemma", "gemma3"])
def test_what_stays_in_memory_is_exact(family):
    bond = make_bond(policy=make_policy(family), reference=True)
    compile_bond(bond)
    plan = keras_bond.plan(bond, 8, PLENTY)
    policy, trained = bond.policy, bond.policy.trainable_variables
    assert entry(plan, "weights").bytes == bytes_in(policy.variables)
    assert entry(plan, "anchor").bytes == bytes_in(bond.anchor.values)
    assert entry(plan, "reference").bytes == bytes_in(
        bond.weight_sets.reference.values
    )
    assert entry(plan, "optimizer").bytes == bytes_in(bond.optimizer.variables)
    embedding = policy.backbone.token_embedding.trainable_variables
    gradients = bytes_in(trained) + bytes_in(embedding)
    assert entry(plan, "gradients").bytes == gradients
    # What is summed up and what is added to it.
    compile_bond(bond, gradient_accumulation_steps=2)
    plan = keras_bond.plan(bond, 8, PLENTY)
    assert entry(plan, "gradients").bytes == 2 * bytes_in(trained)


def test_before_compile_the_optimizer_is_taken_for_adam():
    bond = make_bond()
    before = entry(keras_bond.plan(bond, 8, PLENTY), "optimizer")
    assert "not compiled yet: counted as Adam" in before.explanation
    compile_bond(bond)
    after = entry(keras_bond.plan(bond, 8, PLENTY), "optimizer")
    # Adam also counts its steps and has a learning rate.
    assert 0 < after.bytes - before.bytes <= 16
    bond.compile(keras.optimizers.SGD(1e-5))
    assert entry(keras_bond.plan(bond, 8, PLENTY), "optimizer").bytes <= 16


def test_adapters_leave_next_to_nothing_but_the_weights():
    policy = make_policy(dtype="bfloat16")
    policy.backbone.enable_lora(2)
    plan = keras_bond.plan(make_bond(policy=policy), 8, PLENTY)
    adapters = bytes_in(policy.trainable_variables)
    assert entry(plan, "weights").bytes == bytes_in(policy.variables)
    for name in ("anchor", "reference", "gradients"):
        assert entry(plan, name).bytes == adapters
    kernels = [
        layer.kernel
        for block in policy.backbone.transformer_layers
        for layer in (block.attention.query_dense, block.attention.value_dense)
    ]
    assert entry(plan, "merged kernels").bytes == bytes_in(kernels)


def test_a_low_precision_policy_casts_what_it_runs_with():
    policy = make_policy(dtype="bfloat16")
    plan = keras_bond.plan(make_bond(policy=policy), 8, PLENTY)
    cast = entry(plan, "cast weight set")
    assert cast.bytes == bytes_in(policy.trainable_variables)
    assert "learning" not in cast.passes
    mixed = make_policy(dtype="mixed_bfloat16")
    plan = keras_bond.plan(make_bond(policy=mixed), 8, PLENTY)
    assert entry(plan, "cast weights").bytes == bytes_in(mixed.variables) // 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gemma", "gemma3"])
def test_the_cache_is_exact(family, dtype):
    builder = CacheBuilder(make_policy(family, dtype=dtype))
    leaves = keras.tree.flatten(builder.empty(3, 11))
    assert builder.num_bytes(3, 11) == bytes_in(leaves)


@pytest.mark.parametrize(
    "trainer, arguments, drawn, learned",
    [
        (keras_bond.JBond, {}, 2, "8 rows x 17"),
        # Enough samples that their prompts are read once.
        (keras_bond.Bond, {}, 4, "4 rows x 12 and 32 rows x 5"),
        (keras_bond.Reinforce, {}, 2, "8 rows x 17"),
        (keras_bond.BoNBoN, {"best_of_n": 3}, 3, "16 rows x 17"),
    ],
)
def test_rows_of_each_pass(trainer, arguments, drawn, learned):
    bond = make_bond(trainer, **arguments)
    compile_bond(bond, rollout_batch_size=4, gradient_accumulation_steps=2)
    plan = keras_bond.plan(bond, 8, PLENTY)
    prefilled = entry(plan, "prompt cache").explanation
    assert prefilled == "4 rows x 12 tokens, then copied"
    assert entry(plan, "cache").explanation == f"{4 * drawn} rows x 17 tokens"
    kept = entry(plan, "activations").explanation
    assert kept == f"2 blocks, {learned} tokens"
    builder = bond.decoder.cache_builder
    assert entry(plan, "prompt cache").bytes == builder.num_bytes(4, 12)
    # Any prompt of a policy that sees may have images, and is then read whole.
    bond.encoder.image_reader = object()
    kept = entry(keras_bond.plan(bond, 8, PLENTY), "activations").explanation
    assert kept.endswith(" rows x 17 tokens") and " and " not in kept
    assert entry(plan, "cache").bytes == builder.num_bytes(4 * drawn, 17)


def test_logits_are_counted_at_once(monkeypatch):
    bond = make_bond()
    vocabulary = bond.policy.backbone.vocabulary_size
    logits = entry(keras_bond.plan(bond, 8, PLENTY), "logits, learning")
    assert logits.bytes == 2 * 16 * 5 * vocabulary * 4
    logits = entry(keras_bond.plan(bond, 8, PLENTY), "logits, decoding")
    assert logits.bytes == 2 * 16 * vocabulary * 4
    monkeypatch.setattr(
        "keras_bond.rollouts.network.MOST_LOGITS", 20 * vocabulary
    )
    logits = entry(keras_bond.plan(bond, 8, PLENTY), "logits, learning")
    assert logits.bytes == 2 * 20 * vocabulary * 4


def test_other_models_count_too():
    scorer = keras.layers.Dense(1)
    scorer.build((None, 3))
    bond = keras_bond.JBond(make_policy(), scorer, **ARGUMENTS)
    others = entry(keras_bond.plan(bond, 8, PLENTY), "other models")
    plain = entry(keras_bond.plan(make_bond(), 8, PLENTY), "other models")
    assert others.bytes - plain.bytes == bytes_in(scorer.variables)


def test_peaks_are_sums_and_the_largest_is_named():
    plan = keras_bond.plan(make_bond(), 8, PLENTY)
    learning = [e.bytes for e in plan.entries if "learning" in e.passes]
    assert plan.peaks["learning"] == sum(learning)
    assert plan.peak_bytes == max(plan.peaks.values())
    assert plan.peaks[plan.largest] == plan.peak_bytes
    assert plan.fits and plan.problems == []
    plan.check()
    text = str(plan)
    assert "It fits, with" in text and "peak, learning" in text
    assert all(e.name in text for e in plan.entries)
    assert [line for line in text.splitlines() if len(line) > 80] == []


def test_one_byte_too_little_is_too_little():
    bond = make_bond()
    needed = keras_bond.plan(bond, 8, PLENTY).peak_bytes
    assert keras_bond.plan(bond, 8, needed).fits
    plan = keras_bond.plan(bond, 8, needed - 1)
    assert not plan.fits
    with pytest.raises(ValueError, match="must hold the whole step: learning"):
        plan.check()


def following(bond, plan, batch_size):
    """The plan after doing what the last problem advises."""
    advice = plan.problems[-1].split("`compile(")[1].split(")`")[0]
    now = bond.get_compile_config()["rollout_batch_size"]
    advised = eval(f"dict({advice})")
    compile_bond(bond, **{"rollout_batch_size": now, **advised})
    return keras_bond.plan(bond, batch_size, plan.device_bytes)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25])
def test_the_advice_helps(share):
    """What is named brings the step down to what there is."""
    bond = make_bond(max_prompt_length=60, max_completion_length=60)
    compile_bond(bond, rollout_batch_size=1)
    needed = keras_bond.plan(bond, 8, PLENTY).peak_bytes
    plan = keras_bond.plan(bond, 8, share * needed)
    assert len(plan.problems) == 1
    assert "the whole step: learning needs" in plan.problems[0]
    assert following(bond, plan, 8).fits


def test_smaller_rollouts_are_advised():
    bond = make_bond(max_prompt_length=60, max_completion_length=60)
    compile_bond(bond, gradient_accumulation_steps=8, rematerialize=True)
    plan = keras_bond.plan(bond, 8, PLENTY)
    assert plan.largest != "learning"
    tight = keras_bond.plan(bond, 8, plan.peak_bytes - 1)
    advice = "`compile(rollout_batch_size=4)`, the rest as it is, brings it to"
    assert advice in tight.problems[0]


def test_where_nothing_helps_adapters_are_advised():
    bond = make_bond()
    plan = keras_bond.plan(bond, 8, 1000)
    assert "No argument of `compile` helps" in plan.problems[1]
    assert "`policy.backbone.enable_lora(8)`" in plan.problems[1]
    assert "Received: device_memory=1000, batch_size=8" in plan.problems[1]
    policy = make_policy()
    policy.backbone.enable_lora(2)
    plan = keras_bond.plan(make_bond(policy=policy), 8, 1000)
    assert 'dtype="bfloat16"' in plan.problems[1]


def test_the_cheap_choices_come_first():
    settings = Settings(6, None, 1, False)
    rollouts = [s.rollout_batch_size for s in settings.smaller_rollouts()]
    assert rollouts == [3, 2, 1]
    learning = [
        (s.gradient_accumulation_steps, s.rematerialize)
        for s in settings.smaller_learning()
    ]
    plain, again = [(2, False), (3, False), (6, False)], [(2, True), (3, True)]
    assert learning == [(1, True), *plain, *again, (6, True)]
    settings = dataclasses.replace(settings, rematerialize=True)
    assert len(list(settings.smaller_learning())) == 3


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"rollout_batch_size": 3}, "`rollout_batch_size` must divide"),
        ({"rollout_batch_size": 16}, "`rollout_batch_size` must divide"),
        (
            {"gradient_accumulation_steps": 3},
            "`gradient_accumulation_steps` must divide",
        ),
    ],
)
def test_what_does_not_divide_is_named(arguments, text):
    bond = make_bond()
    compile_bond(bond, **arguments)
    plan = keras_bond.plan(bond, 8, PLENTY)
    assert len(plan.problems) == 1 and text in plan.problems[0]
    with pytest.raises(ValueError, match=text):
        plan.check()


def test_lengths_beyond_the_backbone_are_named():
    bond = make_bond()
    bond.policy.backbone.max_sequence_length = 16
    plan = keras_bond.plan(bond, 8, PLENTY)
    assert "must not exceed the 16 positions" in plan.problems[0]


def test_a_baseline_without_other_prompts_is_named():
    plan = keras_bond.plan(make_bond(), 1, PLENTY)
    assert "A batch must have at least 2 prompts" in plan.problems[0]
    assert keras_bond.plan(make_bond(keras_bond.Bond), 1, PLENTY).fits


def test_a_changed_policy_is_named():
    bond = make_bond()
    bond.policy.backbone.layer_norm.trainable = False
    plan = keras_bond.plan(bond, 8, PLENTY)
    assert "must not change once the trainer is built" in plan.problems[0]


def test_bad_arguments_are_refused():
    bond = make_bond()
    with pytest.raises(TypeError, match="`bond` must be a trainer"):
        keras_bond.plan(bond.policy)
    with pytest.raises(ValueError, match="`batch_size` must be an integer"):
        keras_bond.plan(bond, 0)
    for memory in ("16 GB", 0, float("inf"), float("nan"), None):
        with pytest.raises(ValueError, match="`device_memory` must be a num"):
            keras_bond.plan(bond, 8, memory)


def test_the_device_of_the_process_is_the_default():
    name, num_bytes = backend.device_memory()
    plan = keras_bond.plan(make_bond(), 8)
    assert (plan.device, plan.device_bytes) == (name, num_bytes)
    assert name in str(plan)


def test_an_unknown_memory_is_no_problem_but_said(monkeypatch):
    monkeypatch.setattr(backend, "device_memory", lambda: ("TPU v9", None))
    plan = keras_bond.plan(make_bond(), 8)
    assert plan.fits
    assert "TPU v9 of unknown memory" in str(plan)
    assert "Whether it fits is unknown" in str(plan)
