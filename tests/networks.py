"""A tiny network of every family of KerasHub, with random weights."""

import functools

import keras_hub
import numpy as np
from keras_hub.src.models.gemma3.gemma3_vision_encoder import (
    Gemma3VisionEncoder,
)
from keras_hub.src.models.gemma3n.gemma3n_audio_encoder import (
    Gemma3nAudioEncoder,
)
from keras_hub.src.models.gemma4.gemma4_audio_encoder import Gemma4AudioEncoder
from keras_hub.src.models.gemma4.gemma4_vision_encoder import (
    Gemma4VisionEncoder,
)
from keras_hub.src.models.mobilenetv5.mobilenetv5_backbone import (
    MobileNetV5Backbone,
)
from keras_hub.src.models.mobilenetv5.mobilenetv5_builder import (
    convert_arch_def_to_stackwise,
)

from tests.pictures import VISION

VOCABULARY, WIDTH, WINDOW = 64, 16, 4
SIZES = dict(
    vocabulary_size=VOCABULARY,
    num_layers=2,
    hidden_dim=WIDTH,
    intermediate_dim=32,
)
GROUPED = dict(**SIZES, num_query_heads=2, num_key_value_heads=1)
GEMMA = dict(**GROUPED, head_dim=8)
EXPERTS = dict(num_experts=4, top_k=2)


def gemma3(**arguments):
    window = dict(use_sliding_window_attention=True, sliding_window_size=WINDOW)
    # The sixth block is the first without a window.
    sizes = {**GEMMA, "num_layers": 6}
    return keras_hub.models.Gemma3Backbone(
        **{**sizes, **window, "image_size": 16, **arguments}
    )


def gemma3_with_vision():
    encoder = Gemma3VisionEncoder(**VISION)
    return gemma3(num_layers=2, vision_encoder=encoder)


def gemma3n(**arguments):
    sliding, full = "sliding_attention", "full_attention"
    return keras_hub.models.Gemma3nBackbone(
        text_vocab_size=VOCABULARY,
        text_hidden_size=WIDTH,
        num_hidden_layers=3,
        num_kv_shared_layers=1,
        pad_token_id=0,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=[32] * 3,
        hidden_activation="gelu_approximate",
        layer_types=[sliding, full, sliding],
        sliding_window=WINDOW,
        rope_theta=10000.0,
        max_position_embeddings=32,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=4,
        altup_num_inputs=2,
        laurel_rank=2,
        final_logit_soft_cap=30.0,
        **arguments,
    )


def gemma3n_with_vision_and_audio():
    vision = MobileNetV5Backbone(
        **convert_arch_def_to_stackwise([["er_r1_k3_s1_e1_c8"]]),
        num_features=4,
        image_shape=(16, 16, 3),
        use_msfa=False,
    )
    audio = Gemma3nAudioEncoder(
        hidden_size=4,
        input_feat_size=16,
        sscp_conv_channel_size=[2, 4],
        sscp_conv_kernel_size=[(1, 1), (1, 1)],
        sscp_conv_stride_size=[(2, 2), (2, 2)],
        sscp_conv_group_norm_eps=1e-5,
        num_hidden_layers=1,
        rms_norm_eps=1e-6,
        gradient_clipping=1.0,
        residual_weight=0.5,
        num_attention_heads=1,
        attention_chunk_size=2,
        num_attention_context_right=1,
        num_attention_context_left=1,
        attention_logit_cap=50.0,
        conv_kernel_size=3,
        reduction_factor=1,
    )
    return gemma3n(
        vision_encoder_config=vision.get_config(),
        vision_hidden_size=8,
        audio_encoder_config=audio.get_config(),
        audio_hidden_size=4,
    )


def gemma4(**arguments):
    window = dict(sliding_window_size=WINDOW, sliding_window_pattern=2)
    return keras_hub.models.Gemma4Backbone(
        **{**GEMMA, **window, "image_size": 16, **arguments}
    )


def gemma4_small(**arguments):
    """As 2B and 4B: per-layer embeddings, shared keys and values."""
    return gemma4(
        num_layers=3,
        num_kv_shared_layers=1,
        hidden_size_per_layer_input=4,
        global_head_dim=16,
        use_double_wide_mlp=True,
        final_logit_soft_cap=30.0,
        global_rope_partial_rotary_factor=0.25,
        **arguments,
    )


def gemma4_with_vision_and_audio():
    vision = Gemma4VisionEncoder(**VISION, head_dim=4)
    audio = Gemma4AudioEncoder(
        input_feat_size=16,
        hidden_size=8,
        num_heads=2,
        num_layers=1,
        chunk_size=4,
        context_left=5,
        context_right=0,
        sscp_conv_channels=(4, 2),
        output_proj_dims=None,
        output_dim=WIDTH,
    )
    return gemma4_small(vision_encoder=vision, audio_encoder=audio)


def gemma4_with_vision():
    """As 31B and 26B: fewer global heads, images see themselves whole."""
    return gemma4(
        vision_encoder=Gemma4VisionEncoder(**VISION, head_dim=4),
        num_global_key_value_heads=1,
        global_head_dim=16,
        use_vision_bidirectional_attention=True,
    )


def _backbone(name, **arguments):
    """A builder that looks the class up when it is called."""
    return lambda: getattr(keras_hub.models, f"{name}Backbone")(**arguments)


# The rows of the table in docs/families.md, with the class of KerasHub and a
# builder of its backbone.
GEMMAS = {
    "Gemma": ("Gemma", _backbone("Gemma", **GEMMA)),
    "Gemma 2": (
        "Gemma",
        _backbone(
            "Gemma",
            **GEMMA,
            use_post_ffw_norm=True,
            use_post_attention_norm=True,
            attention_logit_soft_cap=50.0,
            final_logit_soft_cap=30.0,
            use_sliding_window_attention=True,
            sliding_window_size=WINDOW,
        ),
    ),
    "Gemma 3": ("Gemma3", gemma3),
    "Gemma 3, vision": ("Gemma3", gemma3_with_vision),
    "Gemma 3n": ("Gemma3n", gemma3n),
    "Gemma 3n, vision and audio": ("Gemma3n", gemma3n_with_vision_and_audio),
    "Gemma 4": ("Gemma4", gemma4),
    "Gemma 4, per-layer embeddings and shared keys": ("Gemma4", gemma4_small),
    "Gemma 4, experts": (
        "Gemma4",
        functools.partial(
            gemma4,
            enable_moe_block=True,
            num_experts=4,
            expert_intermediate_dim=8,
            num_experts_per_token=2,
        ),
    ),
    "Gemma 4, vision": ("Gemma4", gemma4_with_vision),
    "Gemma 4, vision and audio": ("Gemma4", gemma4_with_vision_and_audio),
}
HEADS = dict(**SIZES, num_heads=2)
OTHERS = {
    "Llama": ("Llama", _backbone("Llama", **GROUPED)),
    "Llama 3": (
        "Llama3",
        _backbone(
            "Llama3",
            **GROUPED,
            rope_frequency_adjustment_factor=8.0,
            rope_low_freq_factor=1.0,
            rope_high_freq_factor=4.0,
            rope_pretraining_sequence_length=8,
        ),
    ),
    "Mistral": (
        "Mistral",
        _backbone("Mistral", **GROUPED, sliding_window=WINDOW),
    ),
    "Mixtral": (
        "Mixtral",
        _backbone("Mixtral", **GROUPED, **EXPERTS, sliding_window=WINDOW),
    ),
    "Qwen 2.5": (
        "Qwen",
        _backbone(
            "Qwen",
            **GROUPED,
            use_sliding_window_attention=True,
            sliding_window_size=WINDOW,
        ),
    ),
    "Qwen 1.5 MoE": (
        "QwenMoe",
        _backbone(
            "QwenMoe",
            **GROUPED,
            **EXPERTS,
            moe_intermediate_dim=16,
            shared_expert_intermediate_dim=16,
        ),
    ),
    "Qwen 3": ("Qwen3", _backbone("Qwen3", **GEMMA)),
    "Qwen 3, untied": (
        "Qwen3",
        _backbone("Qwen3", **GEMMA, tie_word_embeddings=False),
    ),
    "Qwen 3 MoE": (
        "Qwen3Moe",
        _backbone("Qwen3Moe", **GEMMA, **EXPERTS, moe_intermediate_dim=16),
    ),
    "Phi 3": ("Phi3", _backbone("Phi3", **GROUPED, max_sequence_length=32)),
    "SmolLM3": (
        "SmolLM3",
        _backbone(
            "SmolLM3",
            **SIZES,
            num_attention_heads=2,
            num_key_value_heads=1,
            attention_bias=False,
            attention_dropout=0.0,
            rope_layer_enabled_list=[True, False],
            layer_types=["full_attention"] * 2,
            mlp_bias=False,
            layer_norm_epsilon=1e-6,
            max_position_embeddings=32,
            rope_theta=10000.0,
            partial_rotary_factor=1.0,
        ),
    ),
    "GPT-2": ("GPT2", _backbone("GPT2", **HEADS, max_sequence_length=32)),
    "GPT-OSS": (
        "GptOss",
        _backbone("GptOss", **GROUPED, **EXPERTS, sliding_window=WINDOW),
    ),
    "OPT": ("OPT", _backbone("OPT", **HEADS, max_sequence_length=32)),
    "BLOOM": ("Bloom", _backbone("Bloom", **HEADS)),
    "Falcon": ("Falcon", _backbone("Falcon", **SIZES, num_attention_heads=2)),
}
FAMILIES = {**GEMMAS, **OTHERS}
# Those that take a step on all backends. Gemma and Gemma 3 do so in all other
# tests; with audio, Gemma 4 is that of the per-layer embeddings.
STEP_ON_ALL_BACKENDS = (
    "Gemma 2",
    "Gemma 3, vision",
    "Gemma 3n",
    "Gemma 4, experts",
    "Gemma 4, vision and audio",
)
ON_ALL_BACKENDS = ("Gemma", "Gemma 3", *STEP_ON_ALL_BACKENDS)


def make_network(family, seed=0):
    """Builds a policy without a preprocessor.

    Its next-token distributions are far from uniform.

    Args:
        family: str, a key of `FAMILIES`.
        seed: int. Seed of the weights, which are the same on all backends.
    """
    name, build = FAMILIES[family]
    task = getattr(keras_hub.models, f"{name}CausalLM")
    policy = task(backbone=build(), preprocessor=None)
    generator = np.random.default_rng(seed)
    for variable in policy.variables:
        if "float" in variable.dtype:
            noise = 0.3 * generator.normal(size=variable.shape)
            # Norms and scales stay near 1, and biases near 0.
            mean = variable if len(variable.shape) < 2 else 0.0
            variable.assign(mean + noise.astype("float32"))
    return policy
