"""Published Gemmas that are built here without their weights."""

import keras_hub

GEMMA3 = dict(
    image_size=None,
    vision_encoder=None,
    use_post_ffw_norm=True,
    use_post_attention_norm=True,
    use_sliding_window_attention=True,
    head_dim=256,
    vocabulary_size=262144,
)
GEMMA2 = dict(
    use_post_ffw_norm=True,
    use_post_attention_norm=True,
    use_sliding_window_attention=True,
    sliding_window_size=4096,
    attention_logit_soft_cap=50,
    final_logit_soft_cap=30,
    head_dim=256,
    vocabulary_size=256000,
)

# Arguments of the backbones, from the models' reports (arXiv 2503.19786,
# 2408.00118) and, of Gemma 4, from the `text_config` in `config.json` of
# huggingface.co/google/gemma-4-E2B-it, which KerasHub converts to
# `gemma4_instruct_2b`; its vision and audio encoders are left out. KerasHub's
# Gemma counts both halves of its gated feed-forward network as
# `intermediate_dim`, the later ones one of them.
PRESETS = {
    "gemma3_instruct_270m": dict(
        **GEMMA3,
        num_layers=18,
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=640,
        intermediate_dim=2048,
        sliding_window_size=512,
    ),
    "gemma3_instruct_1b": dict(
        **GEMMA3,
        num_layers=26,
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=1152,
        intermediate_dim=6912,
        sliding_window_size=512,
    ),
    "gemma3_instruct_4b_text": dict(
        **GEMMA3,
        num_layers=34,
        num_query_heads=8,
        num_key_value_heads=4,
        hidden_dim=2560,
        intermediate_dim=10240,
        sliding_window_size=1024,
        global_rope_scaling_factor=8.0,
    ),
    "gemma2_instruct_2b_en": dict(
        **GEMMA2,
        num_layers=26,
        num_query_heads=8,
        num_key_value_heads=4,
        hidden_dim=2304,
        intermediate_dim=18432,
    ),
    "gemma2_instruct_9b_en": dict(
        **GEMMA2,
        num_layers=42,
        num_query_heads=16,
        num_key_value_heads=8,
        hidden_dim=3584,
        intermediate_dim=28672,
    ),
    "gemma4_instruct_2b": dict(
        image_size=None,
        vocabulary_size=262144,
        num_layers=35,
        num_query_heads=8,
        num_key_value_heads=1,
        hidden_dim=1536,
        intermediate_dim=6144,
        use_double_wide_mlp=True,
        head_dim=256,
        global_head_dim=512,
        sliding_window_size=512,
        sliding_window_pattern=5,
        num_kv_shared_layers=20,
        hidden_size_per_layer_input=256,
        vocab_size_per_layer_input=262144,
        final_logit_soft_cap=30.0,
        global_rope_partial_rotary_factor=0.25,
    ),
    "tiny": dict(
        **{**GEMMA3, "head_dim": 8, "vocabulary_size": 512},
        num_layers=1,
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=32,
        intermediate_dim=64,
        sliding_window_size=16,
    ),
}


def build(name, num_layers=None, dtype="bfloat16", lora_rank=8):
    """Builds a policy of a preset's shape, without a tokenizer.

    Args:
        name: str. A key of `PRESETS`; any other is asked of KerasHub, which
            downloads its configuration, not its weights.
        num_layers: int, or `None` for the preset's own.
        dtype: str.
        lora_rank: int; 0 trains all weights.

    Returns:
        a `keras_hub.models.CausalLM`.
    """
    if name in PRESETS:
        policy = _from_shape(PRESETS[name], num_layers, dtype)
    else:
        policy = keras_hub.models.CausalLM.from_preset(
            name, load_weights=False, preprocessor=None, dtype=dtype
        )
    if lora_rank:
        policy.backbone.enable_lora(lora_rank)
    return policy


def _from_shape(arguments, num_layers, dtype):
    models = keras_hub.models
    if "num_kv_shared_layers" in arguments:
        backbone, task = models.Gemma4Backbone, models.Gemma4CausalLM
    elif "image_size" in arguments:
        backbone, task = models.Gemma3Backbone, models.Gemma3CausalLM
    else:
        backbone, task = models.GemmaBackbone, models.GemmaCausalLM
    if num_layers:
        arguments = {**arguments, **_fewer_layers(arguments, num_layers)}
    return task(backbone=backbone(**arguments, dtype=dtype), preprocessor=None)


def _fewer_layers(arguments, num_layers):
    """Layers that share their keys and values keep their proportion."""
    fewer = {"num_layers": num_layers}
    if shared := arguments.get("num_kv_shared_layers"):
        share = shared / arguments["num_layers"]
        fewer["num_kv_shared_layers"] = round(share * num_layers)
    return fewer
