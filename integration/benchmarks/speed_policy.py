"""A KerasHub Gemma 3 of a given shape, without a tokenizer."""

import keras_hub
import numpy as np


def build(shape, seed=0):
    """Builds the model with random weights that every backend shares.

    Args:
        shape: a `speed_shapes.Shape`.
        seed: int.

    Returns:
        a `keras_hub.models.Gemma3CausalLM`.
    """
    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=shape.vocabulary,
        image_size=None,
        num_layers=shape.layers,
        num_query_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        hidden_dim=shape.width,
        intermediate_dim=shape.intermediate,
        head_dim=shape.head_dim,
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        use_sliding_window_attention=True,
        sliding_window_size=512,
        vision_encoder=None,
        dtype="float32",
    )
    policy = keras_hub.models.Gemma3CausalLM(
        backbone=backbone, preprocessor=None
    )
    if shape.lora_rank:
        backbone.enable_lora(shape.lora_rank)
    generator = np.random.default_rng(seed)
    for variable in policy.variables:
        noise = generator.standard_normal(variable.shape, "float32")
        variable.assign(0.02 * noise)
    return policy
