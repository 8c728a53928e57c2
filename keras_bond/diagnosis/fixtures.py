"""A tiny policy, a reward and prompts that need no tokenizer."""

import numpy as np

from keras_bond.rewards import Reward

NUM_PROMPTS = 8
PROMPT_LENGTH = 4
COMPLETION_LENGTH = 6
SEED = 20


def tiny_policy(dtype):
    """A Gemma 3 of about 4,000 parameters.

    The sliding window is shorter than a prompt with its completion.
    """
    import keras_hub

    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=32,
        image_size=None,
        num_layers=2,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=16,
        intermediate_dim=32,
        head_dim=8,
        sliding_window_size=4,
        vision_encoder=None,
        dtype=dtype,
    )
    policy = keras_hub.models.Gemma3CausalLM(
        backbone=backbone, preprocessor=None
    )
    generator = np.random.default_rng(SEED)
    for variable in policy.variables:
        noise = 0.3 * generator.normal(size=variable.shape)
        variable.assign(noise.astype("float32"))
    return policy


class TokenReward(Reward):
    """A number that depends on every token and has no meaning."""

    name = "token_reward"

    def score(self, samples):
        positions = np.arange(samples.token_ids.shape[1])
        waves = np.sin(samples.token_ids * (1.0 + positions))
        return np.sum(waves * samples.padding_mask, axis=1).astype("float32")


def prompts(vocabulary_size):
    """Prompts of 1 to 4 tokens, as `fit` takes them without a tokenizer."""
    generator = np.random.default_rng(SEED)
    shape = (NUM_PROMPTS, PROMPT_LENGTH)
    lengths = 1 + np.arange(NUM_PROMPTS) % PROMPT_LENGTH
    return {
        "token_ids": generator.integers(2, vocabulary_size, shape),
        "padding_mask": np.arange(PROMPT_LENGTH) < lengths[:, None],
    }
