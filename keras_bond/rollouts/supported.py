"""Checks that a model is one of the networks that keras_bond supports."""

import sys

from keras_bond.rollouts import network

NO_TOKEN_AXIS = (
    "the states of its recurrent layers hold a whole prefix at once, so a "
    "prompt cannot be processed once for several samples, nor prompts of "
    "different lengths side by side"
)
NEEDS_IMAGE = "it answers questions about an image, and needs one per prompt"
# Classes of KerasHub that are refused by name, and the reason.
REFUSED = {
    "Qwen3_5CausalLM": NO_TOKEN_AXIS,
    "Qwen3_5MoeCausalLM": NO_TOKEN_AXIS,
    "RWKV7CausalLM": NO_TOKEN_AXIS,
    "PaliGemmaCausalLM": NEEDS_IMAGE,
    "BLIP2CausalLM": NEEDS_IMAGE,
    "PARSeqCausalLM": "it reads the text in an image, and takes no prompt",
    "Gemma4AssistantCausalLM": "it drafts tokens for another Gemma 4 and "
    "cannot run alone: train that one",
    "Seq2SeqLM": "it has an encoder and a decoder, and `keras_bond` needs a "
    "decoder that continues its prompt",
}


# Classes that work once KerasHub is repaired: the last version (major, minor)
# that is not, and what is wrong with it.
BROKEN = {
    "GPTNeoXCausalLM": (
        (0, 32),
        "its attention (keras_hub/src/models/gpt_neo_x/gpt_neo_x_attention.py,"
        " line 208) rotates a token that is read with a cache as if it were "
        "the first, so what is drawn is not what would be learned from",
    ),
}


def _reason(name):
    """Why a class is refused, `None` if it is repaired in this KerasHub."""
    if name in REFUSED:
        return f"{REFUSED[name]}; use another family, such as Gemma 3"
    last, fault = BROKEN[name]
    version = sys.modules["keras_hub"].__version__
    if tuple(map(int, version.split(".")[:2])) > last:
        return None
    return (
        f"{fault}; upgrade `keras-hub` to a version above "
        f"{last[0]}.{last[1]}, and this one is {version}"
    )


def check_causal_lm(policy):
    """Raises an error if a policy is not a KerasHub model with a cache.

    Raises:
        TypeError: naming the methods that are missing.
        ValueError: if the family is not supported, naming the reason.
    """
    for name in [*REFUSED, *BROKEN]:
        if network.is_a(policy, name) and (reason := _reason(name)):
            raise ValueError(
                f"`policy` must not be a `{name}`: {reason}. "
                f"Received: policy of type {type(policy).__name__}"
            )
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
    check_inputs("policy", policy.backbone)


def check_inputs(name, backbone):
    """Raises an error if a backbone has inputs that text does not give.

    Raises:
        ValueError: naming the inputs.
    """
    unknown = sorted(set(network.input_specs(backbone)) - network.KNOWN_INPUTS)
    if unknown:
        raise ValueError(
            f"`{name}` must be a network that runs on token ids and a padding "
            f"mask. Received: {name} of type {type(backbone).__name__}, which "
            f"also needs {unknown}"
        )


def check_vocabulary(tokenizer, backbone):
    """Raises an error if a tokenizer has ids that the embedding lacks.

    Raises:
        ValueError: naming both sizes.
    """
    size, known = tokenizer.vocabulary_size(), network.vocabulary_size(backbone)
    if size > known:
        raise ValueError(
            "The tokenizer must not have more tokens than the model's "
            "embedding: use the tokenizer that the model was trained with, or "
            "a backbone of the tokenizer's `vocabulary_size`. "
            f"Received: {size} tokens, an embedding of {known}"
        )


def is_quantized(policy):
    """Whether a policy has layers with int8 or similar kernels."""
    return any(map(is_quantized_layer, policy._flatten_layers()))


def is_quantized_layer(layer):
    """Whether a layer computes with int8 or similar kernels."""
    return getattr(layer, "quantization_mode", None) is not None
