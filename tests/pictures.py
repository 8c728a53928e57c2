"""Policies that see pictures, tiny, and prompts with pictures for them."""

import functools

import keras_hub
import numpy as np

from tests.tiny import train_vocabulary

# The width of a picture in pixels, of which 4 x 4 are a patch.
SIZE = 16
# What stands for a picture in a prompt.
WRITTEN = {"gemma3": "<start_of_image>", "gemma4": "<|image|>"}
SYMBOLS = {
    "gemma3": ["<img>", "<start_of_image>", "<end_of_image>", "<end_of_turn>"],
    "gemma4": ["<|image>", "<|image|>", "<image|>", "<turn|>", "<|video|>"],
}
# Bounds and factors of Gemma 4, which random numbers would make absurd.
FIXED = ("input_min", "input_max", "output_min", "output_max", "layer_scalar")
VISION = dict(
    image_size=SIZE,
    patch_size=4,
    pool_size=2,
    num_layers=1,
    num_heads=2,
    hidden_dim=8,
    intermediate_dim=16,
    output_dim=16,
)
# Image tokens of a picture: patches, pooled over 2 x 2.
TOKENS = (SIZE // 4 // 2) ** 2


@functools.cache
def vocabulary(family):
    sentences = [
        "the quick brown fox jumps over the lazy dog",
        "a b c d e f g 1 2 3 4 5 6 7 8 9 0",
    ]
    return train_vocabulary(
        sentences * 10,
        vocab_size=60,
        model_type="BPE",
        user_defined_symbols=[*SYMBOLS[family], "\n"],
    )


def make_policy(family, seed=0, scale=2.0, **backbone):
    """Builds a Gemma 3 or Gemma 4 with a vision encoder, and float weights.

    Args:
        family: `"gemma3"` or `"gemma4"`.
        seed: int. Seed of the weights, which are the same on all backends.
        scale: float. Standard deviation of the weights times ten.
        **backbone: arguments of the backbone to change.
    """
    make = {"gemma3": _gemma3, "gemma4": _gemma4}[family]
    policy = make(backbone)
    generator = np.random.default_rng(seed)
    for variable in policy.variables:
        if variable.name in FIXED:
            continue
        noise = generator.normal(size=variable.shape) * 0.1 * scale
        variable.assign(noise.astype("float32"))
    return policy


def _gemma3(backbone):
    models = keras_hub.models
    tokenizer = models.Gemma3Tokenizer(proto=vocabulary("gemma3"))
    encoder = models.Gemma3VisionEncoder(**VISION)
    arguments = dict(image_size=SIZE, sliding_window_size=8)
    preprocessor = models.Gemma3CausalLMPreprocessor(
        tokenizer=tokenizer,
        image_converter=keras_hub.layers.Gemma3ImageConverter(
            image_size=(SIZE, SIZE), scale=1 / 127.5, offset=-1
        ),
        sequence_length=40,
        num_vision_tokens_per_image=TOKENS,
    )
    return models.Gemma3CausalLM(
        backbone=models.Gemma3Backbone(
            **_text(tokenizer, encoder, arguments, backbone)
        ),
        preprocessor=preprocessor,
    )


def _gemma4(backbone):
    models = keras_hub.models
    tokenizer = models.Gemma4Tokenizer(proto=vocabulary("gemma4"))
    encoder = models.Gemma4VisionEncoder(
        **VISION, head_dim=4, position_embedding_size=16
    )
    arguments = dict(
        image_size=SIZE,
        sliding_window_size=8,
        sliding_window_pattern=2,
        hidden_size_per_layer_input=4,
        vocab_size_per_layer_input=tokenizer.vocabulary_size(),
    )
    preprocessor = models.Gemma4CausalLMPreprocessor(
        tokenizer=tokenizer,
        image_converter=keras_hub.layers.Gemma4ImageConverter(
            patch_size=4,
            max_soft_tokens=TOKENS,
            pooling_kernel_size=2,
            scale=1 / 255,
        ),
        sequence_length=40,
        num_vision_tokens_per_image=TOKENS,
    )
    return models.Gemma4CausalLM(
        backbone=models.Gemma4Backbone(
            **_text(tokenizer, encoder, arguments, backbone)
        ),
        preprocessor=preprocessor,
    )


def _text(tokenizer, encoder, arguments, changes):
    return (
        dict(
            vocabulary_size=tokenizer.vocabulary_size(),
            num_layers=2,
            num_query_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            hidden_dim=16,
            intermediate_dim=32,
            use_sliding_window_attention=True,
            vision_encoder=encoder,
            **arguments,
        )
        | changes
    )


def picture(seed, height=SIZE, width=SIZE):
    """A picture of random colors, uint8."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3)).astype("uint8")


def prompts_of(family):
    """Prompts with one picture, two, and none."""
    mark = WRITTEN[family]
    return {
        "prompts": [f"fox {mark} a", f"{mark} the {mark} dog b", "a b c"],
        "images": [[picture(1)], [picture(2), picture(3)], []],
    }
