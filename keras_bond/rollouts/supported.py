"""Checks that a model is one of the networks that keras_bond supports."""

INPUTS = {"token_ids", "padding_mask"}


def check_causal_lm(policy):
    """Raises an error if a policy is not a KerasHub model with a cache.

    Raises:
        TypeError: naming the methods that are missing.
    """
    needed = ("backbone", "call_with_cache", "_build_cache")
    missing = [name for name in needed if not hasattr(policy, name)]
    if missing:
        raise TypeError(
            "`policy` must be a KerasHub causal language model with a "
            "key-value cache, such as `keras_hub.models.Gemma3CausalLM`; for "
            "a trainer, pass `bond.policy`. "
            f"Received: policy={policy!r} of type {type(policy).__name__}, "
            f"without {missing}"
        )


def check_text_only(policy):
    """Raises an error if a policy has inputs other than text.

    Raises:
        ValueError: naming its inputs.
    """
    inputs = policy.backbone.input
    if not isinstance(inputs, dict) or set(inputs) != INPUTS:
        names = sorted(inputs) if isinstance(inputs, dict) else inputs
        raise ValueError(
            "`policy` must take text only, without a vision encoder: load a "
            f"text-only preset. Received: a backbone with inputs {names}"
        )


def is_quantized(policy):
    """Whether a policy has layers with int8 or similar kernels."""
    return any(map(is_quantized_layer, policy._flatten_layers()))


def is_quantized_layer(layer):
    """Whether a layer computes with int8 or similar kernels."""
    return getattr(layer, "quantization_mode", None) is not None
