"""Prompts, draws and trainers for the tests of families."""

import keras
import numpy as np
from keras import ops

import keras_bond
from keras_bond import rollouts
from keras_bond.formulas import masks
from tests.tiny import COMPILED_QUICKLY

LENGTHS = np.array([5, 1, 3, 6], "int32")
LENGTH, STOPS = 5, (1, 4)
DIFFERENCE = "sampling/log_prob_difference"
# Where the layers of adapters are not called as KerasHub expects.
LORA_NAMES = {
    "Gemma3nCausalLM": ["q_proj", "v_proj"],
    "SmolLM3CausalLM": ["q_proj", "v_proj"],
}


def token_ids():
    ids = np.random.default_rng(0).integers(5, 60, (4, 6)).astype("int32")
    ids[np.arange(6) >= LENGTHS[:, None]] = 0
    return ids


def prompts():
    pairs = zip(token_ids(), LENGTHS)
    return {"token_ids": [[int(i) for i in ids[:n]] for ids, n in pairs]}


@keras.saving.register_keras_serializable(package="tests")
class SumOfIds(keras.Layer):
    """A reward for networks without a tokenizer."""

    def call(self, inputs):
        return ops.cast(ops.sum(inputs["token_ids"], axis=-1), "float32")


def enable_lora(policy):
    names = LORA_NAMES.get(type(policy).__name__)
    policy.backbone.enable_lora(2, target_layer_names=names)


def trainer(policy, learning_rate=0.1):
    bond = keras_bond.JBond(
        policy,
        SumOfIds(),
        max_prompt_length=6,
        max_completion_length=LENGTH,
        stop_token_ids=STOPS,
        seed=0,
    )
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [1], [learning_rate, learning_rate]
    )
    bond.compile(keras.optimizers.SGD(schedule), **COMPILED_QUICKLY)
    return bond


def step(bond):
    """Takes one step; returns what was logged."""
    callbacks = [keras_bond.callbacks.AnchorFixed()]
    logs = bond.fit(prompts(), batch_size=4, callbacks=callbacks, verbose=0)
    return {name: values[-1] for name, values in logs.history.items()}


def draw(policy, temperature, stops=STOPS):
    decoder = rollouts.Decoder(policy, LENGTH, stops, temperature)
    uniforms = rollouts.uniform(0, "policy", ops.arange(4), 1, LENGTH)
    ids, lengths = map(ops.convert_to_tensor, (token_ids(), LENGTHS))
    return decoder(ids, lengths, uniforms)


def differences(policy):
    """Log-probabilities while drawing, less those of one parallel pass."""
    drawn = draw(policy, 1.0)
    ids = drawn["completion_ids"][:, 0]
    parallel = rollouts.completion_log_probs(
        policy,
        *map(ops.convert_to_tensor, (token_ids(), LENGTHS)),
        ids,
        masks.completion_mask(ids, STOPS),
        1.0,
    )
    return ops.convert_to_numpy(drawn["log_probs"][:, 0] - parallel)


def shared_hidden(policy, samples=2):
    """Hidden states of completions: of whole rows, and after shared prompts."""
    generator = np.random.default_rng(1)
    completions = generator.integers(5, 60, (4, samples, LENGTH))
    inputs = {
        "prompt_ids": token_ids(),
        "prompt_lengths": LENGTHS,
        "completion_ids": completions.astype("int32"),
        "mask": np.ones(completions.shape, "bool"),
    }
    inputs = {k: ops.convert_to_tensor(v) for k, v in inputs.items()}
    reader = trainer(policy).reader
    return [
        ops.convert_to_numpy(reader.hidden(inputs, share_prompts=share))
        for share in (False, True)
    ]


def greedy(policy):
    """The most likely completions: drawn here, and by KerasHub."""
    drawn = draw(policy, 1e-4, stops=())["completion_ids"][:, 0]
    return ops.convert_to_numpy(drawn), generate(policy)


def generate(policy):
    """What KerasHub's own greedy decoding makes of the prompts."""
    policy.compile(sampler="greedy")
    mask = np.arange(6 + LENGTH) < LENGTHS[:, None]
    ids = np.pad(token_ids(), [(0, 0), (0, LENGTH)])
    inputs = {"token_ids": ids, "padding_mask": mask}
    inputs = {k: ops.convert_to_tensor(v) for k, v in inputs.items()}
    generated = policy.make_generate_function()(inputs, None)["token_ids"]
    rows = zip(ops.convert_to_numpy(generated), LENGTHS)
    return np.stack([row[n : n + LENGTH] for row, n in rows])
