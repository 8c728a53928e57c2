"""Policies between, and beyond, initial and trained weights; plain NumPy."""

import keras
import numpy as np
import pytest

import keras_bond
from tests.numeric import values_of
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy


def make_bond(policy, trainer=keras_bond.Bond, **arguments):
    return trainer(
        policy,
        length_reward,
        max_prompt_length=12,
        max_completion_length=3,
        seed=1,
        **arguments,
    )


def disturb(variables, seed):
    """As training does, but faster."""
    generator = np.random.default_rng(seed)
    for variable in variables:
        value = keras.ops.convert_to_numpy(variable).astype("float32")
        noise = 0.1 * generator.normal(size=variable.shape)
        variable.assign(value + noise.astype("float32"))


def train(bond):
    disturb(bond.policy.trainable_variables, 1)
    disturb(bond.anchor.values, 2)


def all_values(bond):
    return values_of(bond.variables)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def bond():
    return make_bond(make_policy(num_layers=1), reference=True)


@pytest.mark.parametrize(
    "trainer",
    [
        keras_bond.Bond,
        keras_bond.JBond,
        keras_bond.Reinforce,
        keras_bond.BoNBoN,
    ],
)
def test_policy_and_anchor_are_on_the_line(trainer):
    """Whatever was asked for before; and weight 1 restores every bit.

    Pins: a second call that builds on the first one.
    """
    bond = make_bond(make_policy(num_layers=1), trainer, reference=True)
    moving = [*bond.policy.trainable_variables, *bond.anchor.values]
    initial = values_of(moving)
    train(bond)
    trained, everything = values_of(moving), all_values(bond)
    before = 1.0
    for weight in (1.75, 0, 0.5, 2):
        assert bond.interpolate(weight) == before
        for now, a, b in zip(values_of(moving), initial, trained):
            a, b = a.astype("float64"), b.astype("float64")
            expected = (1 - weight) * a + weight * b
            np.testing.assert_allclose(now, expected, atol=1e-6)
        before = weight
    assert bond.interpolate(1.0) == 2
    assert_same(all_values(bond), everything)
    bond.interpolate(0.0)
    assert_same(values_of(moving), initial)


@pytest.mark.parametrize("reference", [True, False])
def test_the_product_of_lora_factors_is_scaled(reference):
    """The kernels that the network computes with are on the line."""
    policy = make_policy(num_layers=1)
    keras.utils.set_random_seed(0)
    policy.backbone.enable_lora(2)
    layers = [x for x in policy._flatten_layers() if hasattr(x, "lora_rank")]
    layers = [x for x in layers if x.lora_enabled]
    initial = values_of([layer.kernel for layer in layers])
    bond = make_bond(policy, reference=reference)
    train(bond)
    trained = values_of([layer.kernel for layer in layers])
    everything = all_values(bond)
    assert len(layers) == 2 and (initial[0] != trained[0]).any()
    for weight in (0.5, 1.75):
        bond.interpolate(weight)
        for layer, a, b in zip(layers, initial, trained):
            (now,) = values_of([layer.kernel])
            expected = a + weight * (b - a)
            np.testing.assert_allclose(now, expected, rtol=1e-5, atol=1e-6)
    bond.interpolate(1.0)
    assert_same(all_values(bond), everything)


def test_what_is_trained_beside_adapters_needs_the_reference():
    """Such as biases; adapters of an embedding are adapters, too."""
    policy = make_policy(num_layers=1)
    policy.backbone.enable_lora(2)
    norm = policy.backbone.get_layer("final_normalization")
    norm.trainable = True
    embedding = policy.backbone.token_embedding
    embedding.trainable = True
    embedding.enable_lora(2)
    with pytest.raises(ValueError, match="not LoRA adapters, the first '.*sc"):
        make_bond(policy, reference=False).interpolate(0.5)
    bond = make_bond(policy, reference=True)
    (a,) = values_of([norm.scale])
    table = values_of([embedding.embeddings])[0]
    train(bond)
    (b,) = values_of([norm.scale])
    trained_table = values_of([embedding.embeddings])[0]
    bond.interpolate(1.5)
    np.testing.assert_allclose(
        values_of([norm.scale])[0], 1.5 * b - 0.5 * a, rtol=1e-5
    )
    np.testing.assert_allclose(
        values_of([embedding.embeddings])[0],
        1.5 * trained_table - 0.5 * table,
        atol=1e-6,
    )


def test_adapters_that_were_trained_before_are_refused():
    """Their difference to the trained ones has twice the rank."""
    policy = make_policy(num_layers=1)
    policy.backbone.enable_lora(2)
    train(make_bond(policy))
    bond = make_bond(policy)
    train(bond)
    before = all_values(bond)
    with pytest.raises(ValueError, match="must have been zero .*lora_kernel_b"):
        bond.interpolate(0.5)
    assert_same(all_values(bond), before)


def test_quantized_and_frozen_weights_stay():
    policy = make_policy(num_layers=1)
    policy.backbone.transformer_layers[0].attention.query_dense.quantize("int8")
    policy.backbone.enable_lora(2)
    bond = make_bond(policy, reference=True)
    train(bond)
    frozen = values_of(policy.non_trainable_variables)
    assert any(v.dtype == "int8" for v in policy.non_trainable_variables)
    bond.interpolate(0.5)
    assert_same(values_of(policy.non_trainable_variables), frozen)


def test_bfloat16_variables_are_rounded_once():
    """From float32, not from what was rounded in the call before."""
    policy = make_policy(num_layers=1, dtype="bfloat16")
    bond = make_bond(policy, reference=True)
    variables = policy.trainable_variables
    initial = values_of(variables)
    train(bond)
    trained = values_of(variables)
    bond.interpolate(1.9)
    bond.interpolate(0.3)
    for variable, a, b in zip(variables, initial, trained):
        a, b = a.astype("float32"), b.astype("float32")
        expected = a + np.float32(0.3) * (b - a)
        rounded = keras.ops.cast(expected, "bfloat16")
        found = keras.ops.convert_to_tensor(variable)
        assert bool(keras.ops.all(keras.ops.equal(found, rounded)))
    bond.interpolate(1)
    assert_same(values_of(variables), trained)


def test_what_changes_the_policy_is_the_trained_policy_then(bond, tmp_path):
    """`fit`, loading, `set_weights`; a file holds the policy as it is."""
    initial = values_of(bond.policy.trainable_variables)
    train(bond)
    trained = values_of(bond.policy.trainable_variables)
    bond.interpolate(0.5)
    half = all_values(bond)
    bond.save_weights(tmp_path / "half.weights.h5")
    # Saving changes nothing: the trained weights are still known.
    assert bond.interpolate(2.0) == 0.5
    bond.load_weights(tmp_path / "half.weights.h5")
    assert_same(all_values(bond), half)
    assert bond.interpolate(2.0) == 1
    for now, end in zip(values_of(bond.policy.trainable_variables), trained):
        np.testing.assert_allclose(now, end, atol=1e-6)
    bond.interpolate(0.5)

    bond.compile(keras.optimizers.SGD(0.1), **COMPILED_QUICKLY)
    bond.fit(PROMPTS[:2], batch_size=2, verbose=0)
    fitted = all_values(bond)
    end = values_of(bond.policy.trainable_variables)
    assert any((a != b).any() for a, b in zip(end, half))
    assert bond.interpolate(0.5) == 1
    now = values_of(bond.policy.trainable_variables)
    for middle, a, b in zip(now, initial, end):
        np.testing.assert_allclose(middle, (a + b) / 2, atol=1e-6)
    bond.interpolate(1)
    assert_same(all_values(bond), fitted)


def test_training_continues_from_there(bond):
    """A step begins at the interpolated weights, also if it is set in `fit`.

    On JAX the values are not in the variables in the middle of `fit`. The
    anchor, which the policy has equaled, has moved along with it.
    """
    initial = values_of(bond.policy.trainable_variables)
    disturb(bond.policy.trainable_variables, 1)
    for value, variable in zip(
        bond.anchor.values, bond.policy.trainable_variables
    ):
        value.assign(keras.ops.copy(variable))
    at_end = []

    class Extrapolates(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 0:
                assert self.model.interpolate(1.5) == 1

        def on_train_end(self, logs=None):
            at_end.extend(values_of(self.model.policy.trainable_variables))

    trained = values_of(bond.policy.trainable_variables)
    bond.compile(keras.optimizers.SGD(1e-7), **COMPILED_QUICKLY)
    logs = bond.fit(
        PROMPTS[:4], batch_size=2, verbose=0, callbacks=[Extrapolates()]
    ).history
    assert abs(logs["kl"][0]) < 1e-4
    for now, a, b in zip(at_end, initial, trained):
        np.testing.assert_allclose(now, a + 1.5 * (b - a), atol=1e-4)


def test_a_resumed_run_has_the_weights_of_its_backup(bond, tmp_path):
    """Not the weights with which its trainer was built or interpolated."""
    train(bond)
    trained = values_of(bond.policy.trainable_variables)
    bond.interpolate(0.5)
    half = values_of(bond.policy.trainable_variables)
    other = make_bond(make_policy(num_layers=1), reference=True)
    for trainer in (bond, other):
        # It moves no weight.
        optimizer = keras.optimizers.SGD(1e-30, name="sgd")
        trainer.compile(optimizer, **COMPILED_QUICKLY)
    backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq=1)

    def cut(batch, logs):
        raise KeyboardInterrupt

    cuts = keras.callbacks.LambdaCallback(on_train_batch_end=cut)
    arguments = {"batch_size": 2, "verbose": 0}
    with pytest.raises(KeyboardInterrupt):
        bond.fit(PROMPTS[:4], callbacks=[backup, cuts], **arguments)
    other.fit(PROMPTS[:4], callbacks=[backup], **arguments)
    assert int(other.prompts_seen) == 4
    assert_same(values_of(other.policy.trainable_variables), half)
    assert other.interpolate(2.0) == 1
    for now, end in zip(values_of(other.policy.trainable_variables), trained):
        np.testing.assert_allclose(now, end, atol=1e-6)


def test_mistakes_are_named(bond):
    for weight in (-0.1, 4.5, "1", None, float("nan")):
        with pytest.raises(ValueError, match="`weight` must be a number betw"):
            bond.interpolate(weight)
    with pytest.warns(UserWarning, match="above 2 leaves the range"):
        bond.interpolate(2.5)
    other = make_bond(make_policy(num_layers=1), reference=False)
    with pytest.raises(ValueError, match=r"needs the initial .*reference=Tru"):
        other.interpolate(0.5)
