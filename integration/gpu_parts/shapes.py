"""Networks of random weights, and what they are asked."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Gemma 3 of random weights and what it is asked."""

    name: str
    layers: int
    width: int
    intermediate: int
    head_dim: int = 256
    vocabulary: int = 262_144
    prompts: int = 32
    length: int = 256
    samples: int = 4
    dtype: str = "bfloat16"

    @property
    def rows(self):
        return 2 * self.samples * self.prompts


SHAPES = {
    "step": Shape("gemma3_instruct_270m", 18, 640, 2048),
    "step_1b": Shape("gemma3_instruct_1b", 26, 1152, 6912),
}
QUICK = Shape("quick", 2, 32, 64, 16, 256, 2, 16, 2, "float32")


def build_policy(shape, scale=0.02):
    """A Gemma 3 without a tokenizer, which would need TensorFlow."""
    import keras
    import keras_hub

    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=shape.vocabulary,
        image_size=None,
        num_layers=shape.layers,
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=shape.width,
        intermediate_dim=shape.intermediate,
        head_dim=shape.head_dim,
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        use_sliding_window_attention=True,
        sliding_window_size=512,
        vision_encoder=None,
        dtype=shape.dtype,
    )
    for number, variable in enumerate(backbone.variables):
        noise = keras.random.normal(variable.shape, seed=number)
        variable.assign(scale * noise)
    return keras_hub.models.Gemma3CausalLM(backbone=backbone, preprocessor=None)
