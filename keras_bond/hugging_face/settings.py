"""Settings of `config.json`, compared with what KerasHub computes for them.

KerasHub's converters read some keys and drop the others, whatever their value.
Here stands, for each family, what KerasHub computes for every key that changes
the output of a model in Hugging Face Transformers.
"""

import math
import warnings

# Neither the shape of a weight, which loading checks, nor a setting of training
# or of files changes what loaded weights compute.
WITHOUT_EFFECT = {
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_sliding_window_pattern",
    "architectures",
    "attention_dropout",
    "attn_pdrop",
    "bos_token_id",
    "boi_token_index",
    "cache_implementation",
    "dtype",
    "embd_pdrop",
    "eoi_token_index",
    "eos_token_id",
    "head_dim",
    "hidden_activation",
    "hidden_size",
    "id2label",
    "image_token_index",
    "initializer_range",
    "intermediate_size",
    "keys_to_ignore_at_inference",
    "label2id",
    "max_position_embeddings",
    "max_window_layers",
    "mm_tokens_per_image",
    "model_type",
    "moe_intermediate_size",
    "n_ctx",
    "n_embd",
    "n_head",
    "n_layer",
    "n_positions",
    "num_attention_heads",
    "num_experts",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "resid_pdrop",
    "return_dict",
    "rope_interleaved",
    "rope_local_base_freq",
    "rope_parameters",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "shared_expert_intermediate_size",
    "sliding_window_pattern",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "text_config",
    "torch_dtype",
    "transformers_version",
    "unk_token_id",
    "use_cache",
    "use_sliding_window",
    "vision_config",
    "vocab_size",
}


# Families whose heads divide the width in KerasHub.
WITHOUT_HEAD_DIM = ("llama", "mixtral", "qwen2", "qwen2_moe")


def _attribute(name):
    return lambda backbone: getattr(backbone, name)


def _llama_scaling(backbone):
    if backbone.rope_frequency_adjustment_factor is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": backbone.rope_frequency_adjustment_factor,
        "low_freq_factor": backbone.rope_low_freq_factor,
        "high_freq_factor": backbone.rope_high_freq_factor,
        "original_max_position_embeddings": (
            backbone.rope_pretraining_sequence_length
        ),
    }


def _gemma_3_scaling(backbone):
    factor = backbone.global_rope_scaling_factor
    return None if factor == 1 else {"rope_type": "linear", "factor": factor}


def _gemma_window(backbone):
    is_used = backbone.use_sliding_window_attention
    return backbone.sliding_window_size if is_used else None


def _epsilon(backbone):
    """That of all norms; some classes have another for their blocks."""
    found = {
        layer.epsilon
        for layer in backbone._flatten_layers()
        if "Norm" in type(layer).__name__
    }
    return found.pop() if len(found) == 1 else sorted(found)


def _qwen_3_epsilon(backbone):
    """Queries and keys have 1e-5, which matters if the others have more."""
    epsilon = backbone.layer_norm_epsilon
    return epsilon if epsilon <= 1e-5 else [1e-5, epsilon]


def _layer_types(period):
    """Sliding layers, every last one of a period sees everything."""

    def types(backbone):
        if not backbone.use_sliding_window_attention:
            return _full_attention(backbone)
        kinds = ["sliding_attention"] * (period - 1) + ["full_attention"]
        return [kinds[i % period] for i in range(backbone.num_layers)]

    return types


def _full_attention(backbone):
    return ["full_attention"] * backbone.num_layers


def _is_tied(backbone):
    return bool(backbone.token_embedding.tie_weights)


# For each `model_type`: keys of `config.json`, Transformers' value where a
# folder has none, and what KerasHub's backbone computes.
_COMMON = {
    "rms_norm_eps": (1e-6, _epsilon),
    "rope_theta": (10000.0, _attribute("rope_max_wavelength")),
    "rope_scaling": (None, None),
    "hidden_act": ("silu", "silu"),
    "attention_bias": (False, False),
    "tie_word_embeddings": (False, _is_tied),
    "sliding_window": (None, None),
}
_EXPERTS = {
    "num_experts_per_tok": (None, _attribute("top_k")),
    "norm_topk_prob": (False, _attribute("norm_top_k_prob")),
    "decoder_sparse_step": (1, 1),
    "mlp_only_layers": ([], []),
}
_GEMMA = {
    **_COMMON,
    "rope_theta": (10000.0, 10000.0),
    "hidden_act": ("gelu_pytorch_tanh", "gelu_pytorch_tanh"),
    "tie_word_embeddings": (True, _is_tied),
    "use_bidirectional_attention": (False, False),
}
_GEMMA_2 = {
    **_GEMMA,
    "sliding_window": (4096, _gemma_window),
    "layer_types": (None, _layer_types(2)),
    # KerasHub's blocks ignore `query_head_dim_normalize`.
    "query_pre_attn_scalar": (256, _attribute("head_dim")),
    "final_logit_softcapping": (30.0, _attribute("final_logit_soft_cap")),
    "attn_logit_softcapping": (50.0, _attribute("attention_logit_soft_cap")),
}
_GEMMA_3 = {
    **_GEMMA_2,
    "rope_theta": (1000000.0, 1000000.0),
    "rope_theta_local": (10000.0, 10000.0),
    "rope_scaling": (None, _gemma_3_scaling),
    "rope_scaling_local": (None, None),
    "layer_types": (None, _layer_types(6)),
    "final_logit_softcapping": (None, _attribute("final_logit_soft_cap")),
    "attn_logit_softcapping": (None, _attribute("attention_logit_soft_cap")),
}
_QWEN = {**_COMMON, "layer_types": (None, _full_attention)}
FAMILIES = {
    "llama": {
        **_COMMON,
        "mlp_bias": (False, False),
        "rope_scaling": (None, _llama_scaling),
    },
    "mistral": {
        **_COMMON,
        "tie_word_embeddings": (False, False),
        "sliding_window": (4096, _attribute("sliding_window")),
    },
    "mixtral": {
        **_COMMON,
        "tie_word_embeddings": (False, False),
        "rms_norm_eps": (1e-5, _epsilon),
        "rope_theta": (1000000.0, _attribute("rope_max_wavelength")),
        "num_experts_per_tok": (2, _attribute("top_k")),
        "sliding_window": (None, _attribute("sliding_window")),
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "rms_norm_eps": (1e-6, _qwen_3_epsilon)},
    "qwen2_moe": {
        **_QWEN,
        **_EXPERTS,
        "num_experts_per_tok": (4, _attribute("top_k")),
        "qkv_bias": (True, True),
    },
    "qwen3_moe": {
        **_QWEN,
        **_EXPERTS,
        "num_experts_per_tok": (8, _attribute("top_k")),
        "rms_norm_eps": (1e-6, _qwen_3_epsilon),
    },
    "gemma": _GEMMA,
    "gemma2": _GEMMA_2,
    "gemma3_text": _GEMMA_3,
    "gemma3": _GEMMA_3,
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_new"),
        "layer_norm_epsilon": (1e-5, 1e-5),
        "scale_attn_weights": (True, True),
        "scale_attn_by_inverse_layer_idx": (False, False),
        "reorder_and_upcast_attn": (False, False),
        "add_cross_attention": (False, False),
        "tie_word_embeddings": (True, _is_tied),
        "n_inner": (None, lambda x: x.intermediate_dim),
    },
}
# Keys that a converter needs and Transformers leaves out at their defaults.
_NEEDED = {
    "use_sliding_window": False,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "resid_pdrop": 0.1,
}


def completed(config):
    """Returns `config.json` with what KerasHub's converters read from it.

    Transformers 5 writes `rope_parameters`, of which the converters read one
    entry, and leaves out keys at their defaults, which the converters miss.

    Args:
        config: dict. Content of `config.json`.

    Raises:
        ValueError: if the family is not supported, or the weights are
            quantized.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            "`folder` must be of a family whose settings are compared, with "
            f"one of model_type={sorted(FAMILIES)} in its config.json. "
            "KerasHub may load others, without that comparison, by "
            "`keras_hub.models.CausalLM.from_preset(folder)`. "
            f"Received: model_type={family!r}"
        )
    if config.get("quantization_config"):
        raise ValueError(
            "`folder` must have float weights: load the model that it was "
            "quantized from. Received: quantization_config="
            f"{config['quantization_config']}"
        )
    # KerasHub asks for the first one.
    config = {**config, "architectures": config.get("architectures") or [""]}
    if "text_config" in config:
        text = {**config["text_config"], "model_type": family}
        return {**config, "text_config": _completed_text(text)}
    return _completed_text(config)


def _completed_text(config):
    defaults = {k: v for k, (v, _) in FAMILIES[config["model_type"]].items()}
    found = {**_NEEDED, **defaults, **config, **_rope(config, defaults)}
    if "num_attention_heads" in found:
        heads = found["num_attention_heads"]
        found.setdefault("num_key_value_heads", heads)
        if "num_local_experts" in found:
            found.setdefault("num_experts", found["num_local_experts"])
        if found.get("head_dim") is None:
            found["head_dim"] = found["hidden_size"] // heads
    if found["model_type"].startswith("qwen"):
        if not found["use_sliding_window"]:
            found["sliding_window"] = None
    if found["model_type"] == "gpt2" and found["n_inner"] is None:
        found["n_inner"] = 4 * found["n_embd"]
    if found["model_type"].startswith("gemma"):
        found.update(_gemma(found, config))
    if found.get("layer_types") is None:
        found.pop("layer_types", None)
    elif "sliding_attention" not in found["layer_types"]:
        found["sliding_window"] = None
    return found


def _rope(config, defaults):
    """The keys of rotary embeddings, as Transformers 4 wrote them."""
    if "rope_theta" not in defaults:
        return {}
    new = config.get("rope_parameters") or {}
    old = config.get("rope_scaling") or {}
    everywhere = new.get("full_attention", new) or old
    local = new.get("sliding_attention", {})
    found = {
        "rope_theta": everywhere.get("rope_theta", config.get("rope_theta")),
        "rope_scaling": _scaling(everywhere),
        "rope_parameters": {},
    }
    if found["rope_theta"] is None:
        found["rope_theta"] = defaults["rope_theta"]
    if "rope_theta_local" in defaults:
        theta = local.get("rope_theta", config.get("rope_local_base_freq"))
        found["rope_theta_local"] = theta or defaults["rope_theta_local"]
        found["rope_scaling_local"] = _scaling(local)
    return found


def _scaling(parameters):
    scaling = {k: v for k, v in parameters.items() if k != "rope_theta"}
    # The name of before Transformers 4.43.
    kind = scaling.pop("type", None)
    kind = scaling.setdefault("rope_type", kind or "default")
    is_none = kind == "linear" and scaling.get("factor") == 1
    return None if kind == "default" or is_none else scaling


def _gemma(found, config):
    """What Gemma's configs call differently, or say several times."""
    new = config.get("hidden_activation") or config.get("hidden_act")
    # Gemma 1 was published with "gelu", and never computed it.
    if new is None or (found["model_type"] == "gemma" and new == "gelu"):
        new = "gelu_pytorch_tanh"
    return {
        "hidden_act": new,
        "use_bidirectional_attention": bool(
            found["use_bidirectional_attention"]
        ),
    }


def repairs(config):
    """Returns the arguments of the backbone that KerasHub's converter drops.

    Args:
        config: dict. What `completed` returns.
    """
    text = config.get("text_config", config)
    found = {}
    if "rms_norm_eps" in text:
        found["layer_norm_epsilon"] = text["rms_norm_eps"]
    if text["model_type"] in ("qwen3", "qwen3_moe"):
        found["sliding_window_size"] = text["sliding_window"]
    return found


def check_known(config):
    """Raises an error for settings that KerasHub has for no such model.

    Args:
        config: dict. What `completed` returns.

    Raises:
        ValueError: naming the settings.
    """
    text = config.get("text_config", config)
    compared = FAMILIES[text["model_type"]]
    wrong = {
        name: f"{text[name]} ({ours} in KerasHub)"
        for name, (_, ours) in compared.items()
        if name in text and not callable(ours) and not _equal(text[name], ours)
    }
    if text["model_type"] in WITHOUT_HEAD_DIM:
        head_dim = text["hidden_size"] // text["num_attention_heads"]
        if text["head_dim"] != head_dim:
            wrong["head_dim"] = f"{text['head_dim']} ({head_dim} in KerasHub)"
    scaling = text.get("rope_scaling")
    if text["model_type"] == "llama" and scaling is not None:
        if scaling["rope_type"] != "llama3":
            wrong["rope_scaling"] = f"{scaling} (none but llama3 in KerasHub)"
    _check_none(wrong, text)
    unknown = sorted(
        name
        for name, value in text.items()
        if name not in compared and name not in WITHOUT_EFFECT and value
    )
    if unknown:
        warnings.warn(
            "config.json has settings that are not compared with KerasHub's "
            "model, because Transformers has none of that name for its "
            f"model_type. Received: {unknown}",
            stacklevel=3,
        )


def check_same(config, backbone):
    """Raises an error if a backbone computes something else than its folder.

    Args:
        config: dict. What `completed` returns.
        backbone: `keras_hub.models.Backbone`.

    Raises:
        ValueError: naming the settings.
    """
    text = config.get("text_config", config)
    compared = FAMILIES[text["model_type"]]
    wrong = {}
    for name, (_, computed) in compared.items():
        if callable(computed) and (name in text):
            ours = computed(backbone)
            if not _equal(text[name], ours):
                wrong[name] = f"{text[name]} ({ours} in KerasHub)"
    _check_none(wrong, text)


def _check_none(wrong, text):
    if wrong:
        raise ValueError(
            "KerasHub must compute what config.json says, but it has no such "
            "model: use one without these settings, or a newer KerasHub and "
            f"keras_bond. Received: model_type={text['model_type']!r} with "
            f"{wrong}"
        )


def _equal(folder, ours):
    if isinstance(folder, dict) and isinstance(ours, dict):
        names = set(folder) | set(ours)
        return all(_equal(folder.get(x), ours.get(x)) for x in names)
    if isinstance(folder, float) or isinstance(ours, float):
        if not all(isinstance(x, (int, float)) for x in (folder, ours)):
            return False
        return math.isclose(folder, ours, rel_tol=1e-6)
    return folder == ours
