"""Interface to KerasHub language models: inputs, blocks, head, embedding.

No other module depends on which inputs a family of networks has, how it
computes logits, or which layers it is made of.
"""

import math

import keras
from keras import ops
from keras import tree

from keras_bond import backend
from keras_bond.backend import devices
from keras_bond.backend import layer_calls
from keras_bond.backend import parts as parts_lib
from keras_bond.formulas import likelihood
from keras_bond.formulas import masks
from keras_bond.rollouts import images

# Inputs that every network has.
TEXT_INPUTS = ("token_ids", "padding_mask")
# Inputs of networks with a vision or audio encoder: those with one value per
# token, and those of the encoders.
TOKEN_INPUTS = ("vision_mask", "audio_mask")
ENCODER_INPUTS = (
    "images",
    "pixel_values",
    "pixel_position_ids",
    "vision_indices",
    "audio_mel",
    "audio_mel_mask",
    "input_features",
    "input_features_mask",
    "audio_indices",
)
POSITIONS = "position_ids"
KNOWN_INPUTS = {*TEXT_INPUTS, *TOKEN_INPUTS, *ENCODER_INPUTS, POSITIONS}
# Attributes of a backbone that turn pictures and sound into hidden states.
ENCODERS = ("vision_encoder", "audio_encoder", "embed_vision", "embed_audio")
# Those that put these hidden states among the tokens' own.
INTERLEAVERS = ("interleave_embeddings", "audio_interleave_embeddings")
# Its blocks take the index of a token in `**kwargs`, in which Keras does not
# allow tensors next to an int.
NEEDS_TENSOR_INDEX = "SmolLM3CausalLM"
# Methods of blocks that compute which tokens attend to which, and what blocks
# call their part of a cache.
MASK_METHODS = ("_compute_self_attention_mask", "_compute_attention_mask")
CACHES = ("self_attention_cache", "attention_cache", "cache")
# With learned positions, and those whose attention cannot read several tokens
# after those of a cache.
NEEDS_WHOLE_ROWS = ("GPT2CausalLM", "OPTCausalLM", "Gemma3nCausalLM")
# Maximum number of logits held at once: 64 MiB in float32.
MOST_LOGITS = 2**24
# Parts that tokens are divided into, at least, to skip those masked out.
MASKED_PARTS = 8


def is_a(layer, *names):
    """Whether a layer is of a class of KerasHub, which is not imported."""
    return any(
        base.__name__ in names and base.__module__.startswith("keras_hub.")
        for base in type(layer).__mro__
    )


def language_model(backbone):
    """Returns the part of a backbone that holds its blocks and embedding.

    That is the backbone itself, except for Gemma 3n.
    """
    return getattr(backbone, "language_model", backbone)


def blocks(backbone):
    """Returns the transformer blocks of a backbone, a list of layers."""
    return language_model(backbone).transformer_layers


def embedding(backbone):
    """Returns the layer with the weights of embedding and head.

    It has `input_dim`, the number of token ids, and `output_dim`, the width.
    """
    model = language_model(backbone)
    scaled = getattr(model, "embed_tokens", None)
    return model.token_embedding if scaled is None else scaled.embedding


def vocabulary_size(backbone):
    """Returns the number of token ids that a backbone has an embedding for.

    Without one, as in networks that are not KerasHub's, that of int32.
    """
    try:
        return embedding(backbone).input_dim
    except AttributeError:
        return 2**31


def encoders(backbone):
    """Returns the layers of a backbone that read pictures or sound."""
    layers = [getattr(backbone, name, None) for name in ENCODERS]
    return [layer for layer in layers if layer is not None]


def freeze_encoders(backbone):
    """Sets `trainable = False` on what text does not use.

    That is the vision and audio encoders and, in Gemma 3n, the keys and values
    of blocks that share those of another one. Text gives them no gradient. An
    optimizer with weight decay would change them nevertheless, and anchor and
    reference would hold copies of them.
    """
    idle = encoders(backbone)
    for block in getattr(language_model(backbone), "transformer_layers", []):
        if getattr(block, "is_kv_shared_layer", False):
            names = ("k_proj", "v_proj", "k_norm")
            idle += [getattr(block.attention, name, None) for name in names]
    for layer in idle:
        if layer is not None:
            freeze(layer)


def freeze(layer):
    """Sets `trainable = False` on a layer and on all that it consists of.

    One that was loaded can have it while its parts have not. On TensorFlow
    nothing would be set then: an attribute that has its value already is not
    set again (`AutoTrackable.__setattr__`).
    """
    layer.trainable = True
    layer.trainable = False


def input_specs(backbone):
    """Returns the `keras.KerasTensor` of each input of a backbone, by name."""
    specs = backbone.input
    if not isinstance(specs, dict):
        return {spec.name: spec for spec in tree.flatten(specs)}
    # Gemma 4 leaves sizes open that its vision encoder insists on.
    inner = getattr(getattr(backbone, "vision_encoder", None), "input", None)
    if isinstance(inner, dict):
        specs = {name: inner.get(name, specs[name]) for name in specs}
    return specs


def hidden_states(backbone, inputs, training=False):
    """Computes the hidden states of all tokens in parallel.

    Args:
        backbone: a `keras_hub.models.Backbone`.
        inputs: dict of tensors: `token_ids` int32 and `padding_mask` bool,
            both `(rows, length)`; of prompts with images also those that are
            named in `images.py`. Vision and audio encoders do not run.
        training: bool.

    Returns:
        float tensor `(rows, length, width)`.
    """
    calls = _without_encoders(backbone)
    if images.EMBEDDINGS in inputs:
        calls |= _with_images(backbone, inputs)
        mask = images.mask(inputs[images.INDICES], inputs["token_ids"].shape[1])
        inputs = {**inputs, "vision_mask": ops.cast(mask, "int32")}
    specs = input_specs(backbone)
    filled = {
        name: inputs[name] if name in inputs else _absent(name, spec, inputs)
        for name, spec in specs.items()
    }
    with layer_calls.replaced(calls):
        return backbone(filled, training=training)


def _absent(name, spec, inputs):
    """What a network with further inputs is given along with text."""
    rows, length = ops.shape(inputs["token_ids"])
    if name == POSITIONS:
        positions = ops.arange(length, dtype=spec.dtype)
        return ops.broadcast_to(positions[None], (rows, length))
    if name in TOKEN_INPUTS:
        return ops.zeros((rows, length), spec.dtype)
    # No pictures, or no sound: every axis of unknown size is empty.
    return ops.zeros((rows, *[n or 0 for n in spec.shape[1:]]), spec.dtype)


def _without_encoders(backbone):
    """Calls of layers with which the inputs of the encoders are ignored.

    Convolutions and reshapes of empty tensors fail on some backends.
    """
    calls = {}
    for layer in encoders(backbone):
        calls[layer, "call"] = lambda *args, **kwargs: ops.zeros((1, 1, 1))
    for name in INTERLEAVERS:
        if (layer := getattr(backbone, name, None)) is not None:
            calls[layer, "call"] = _only_text
    processor = getattr(backbone, "embedding_processor", None)
    if processor is not None:
        call = processor.call
        calls[processor, "call"] = lambda inputs: call(
            {"token_ids": inputs["token_ids"]}
        )
    return calls


def _with_images(backbone, inputs):
    """Calls of layers with which embeddings that are there are used."""
    embeddings = images.as_encoded(backbone, inputs[images.EMBEDDINGS])
    return {
        (backbone.vision_encoder, "call"): lambda *args, **kwargs: embeddings,
        (backbone.interleave_embeddings, "call"): images.interleave,
    }


def _only_text(image_embeddings, text_embeddings, vision_indices):
    del image_embeddings, vision_indices
    return text_embeddings


def read_hidden(policy, inputs, cache, index=0):
    """Does what `read_tokens` does, without computing logits.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        inputs: dict of tensors: `token_ids` int32 `(rows, tokens)`; of prompts
            with images also those that are named in `images.py`.
        cache, index: see `read_tokens`.

    Returns:
        `(hidden, cache)`: float tensor `(rows, tokens, width)`, and the cache.
    """
    # XLA removes unused logits by itself, but PyTorch would compute all of
    # them.
    model = language_model(policy.backbone)
    name = "token_embedding"
    embed = getattr(model, name)
    if isinstance(embed, keras.Layer):
        model, name, embed = embed, "call", embed.call

    def embed_only(inputs, reverse=False):
        return inputs if reverse else embed(inputs)

    calls, arguments = {(model, name): embed_only}, {}
    token_ids = inputs["token_ids"]
    if images.EMBEDDINGS in inputs:
        arguments = images.cache_arguments(policy.backbone, inputs)
        calls |= images.attention_calls(blocks(policy.backbone))
        interleave = policy.backbone.interleave_embeddings
        calls[interleave, "call"] = images.interleave
    with layer_calls.replaced(calls):
        return read_tokens(policy, token_ids, cache, index, **arguments)[1:]


def read_tokens(policy, token_ids, cache, index, **arguments):
    """Reads tokens at an index and adds their keys and values to a cache.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        token_ids: int32 tensor `(rows, tokens)`.
        cache: the cache of the tokens before `index`.
        index: int, or int32 scalar tensor. Position of the first token.
        **arguments: of `call_with_cache`, for prompts with images.

    Returns:
        `(logits, hidden, cache)`: tensors `(rows, tokens, vocabulary)` and
        `(rows, tokens, width)`, and the cache.
    """
    if is_a(policy, NEEDS_TENSOR_INDEX):
        index = ops.convert_to_tensor(index, "int32")
    return policy.call_with_cache(token_ids, cache, index, **arguments)


def can_read_after_prompts(policy):
    """Whether `hiding_padding` is possible and changes nothing but speed.

    Args:
        policy: a `keras_hub.models.CausalLM`.
    """
    return not is_a(policy, *NEEDS_WHOLE_ROWS) and all(
        _mask_method(block) for block in blocks(policy.backbone)
    )


def hiding_padding(backbone, starts, grow):
    """Returns a context in which attention ignores the first tokens of rows.

    Args:
        backbone: a `keras_hub.models.Backbone`.
        starts: int32 tensor `(rows,)`. Place of the first token of each row
            that is not padding.
        grow: callable that makes room in the part of a cache that a block is
            given.
    """
    return layer_calls.replaced(
        {
            (block, "call"): _hiding_call(block, starts, grow)
            for block in blocks(backbone)
        }
    )


def _mask_method(block):
    return next((name for name in MASK_METHODS if hasattr(block, name)), None)


def _hiding_call(block, starts, grow):
    call, name = block.call, _mask_method(block)
    compute_mask = getattr(block, name)

    def without_padding(*args, **kwargs):
        mask = compute_mask(*args, **kwargs)
        num_queries, num_keys = mask.shape[-2:]
        is_padding = ops.arange(num_keys, dtype="int32") < starts[:, None]
        # The queries are the last tokens of the cache. Those that are padding
        # see other padding: a token that sees nothing may become NaN.
        queries = is_padding[:, num_keys - num_queries :, None]
        seen = ops.logical_or(ops.logical_not(is_padding[:, None]), queries)
        return ops.logical_and(ops.cast(mask, "bool"), seen)

    # All of this is inside the call, so that it also is when the backward pass
    # recomputes a block, which then keeps the cache without room.
    def hiding_call(*args, **kwargs):
        grown = {k: grow(kwargs[k]) for k in CACHES if k in kwargs}
        with layer_calls.replaced({(block, name): without_padding}):
            return call(*args, **{**kwargs, **grown})

    return hiding_call


class Head:
    """The output layer of a policy, applied to a few tokens at a time.

    A tensor `(batch, length, vocabulary)` would be the largest of a training
    step, as the vocabulary of Gemma 3 has 262,144 tokens. The head is therefore
    applied to a few tokens at a time and recomputed in the backward pass.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        temperature: float, that of the sampler. Defaults to 1.
    """

    def __init__(self, policy, temperature=1.0):
        self.embedding = embedding(policy.backbone)
        self._project = language_model(policy.backbone).token_embedding
        # Of Gemma 4. In other families `token_embedding` applies it.
        self._soft_cap = getattr(policy, "final_logit_cap", None)
        self.temperature = temperature

    def logits(self, hidden):
        """Logits `(..., vocabulary)` of hidden states `(..., width)`."""
        with layer_calls.untransposed(self._project):
            logits = self._project(hidden, reverse=True)
        if self._soft_cap is None:
            return logits
        return ops.tanh(logits / self._soft_cap) * self._soft_cap

    def token_log_probs(self, hidden, token_ids, mask):
        """Log-probability of each token, see `likelihood.token_log_probs`.

        Args:
            hidden: float tensor `(..., width)`, hidden states that predict the
                tokens.
            token_ids: int32 tensor `(...)`.
            mask: bool tensor `(...)`. Which tokens count.

        Returns:
            float32 tensor `(...)`, in nats, 0 where `mask` is False.
        """

        def of_part(part):
            return likelihood.token_log_probs(
                self.logits(part["hidden"]), part["ids"], self.temperature
            )

        tensors = {"hidden": hidden, "ids": token_ids}
        log_probs = self.map_tokens(of_part, tensors, mask)
        return ops.where(mask, log_probs, 0.0)

    def map_tokens(self, function, tensors, mask=None):
        """Applies a function of tokens to a few of them at a time.

        Args:
            function: callable that takes `tensors` with one token axis in place
                of the leading axes, and returns a tensor `(tokens,)`. With
                `mask`, it reads no variables but those of the embedding.
            tensors: dict of tensors with the same leading axes as `"ids"`.
            mask: bool tensor of the shape of `"ids"`, or `None`. Parts of
                tokens that are all masked out are not computed.

        Returns:
            tensor of the shape of `"ids"`.
        """
        leading = tensors["ids"].shape
        flat = {
            name: ops.reshape(tensor, (-1, *tensor.shape[len(leading) :]))
            for name, tensor in tensors.items()
        }
        num_tokens = math.prod(leading)
        num_parts = -(-num_tokens // self.tokens_at_once())
        if num_parts <= 1:
            return ops.reshape(function(flat), leading)
        places, num_used = None, None
        if mask is not None and devices.num_replicas() == 1:
            num_parts = max(num_parts, min(MASKED_PARTS, num_tokens))
            order, places = masks.used_first(ops.reshape(mask, (-1,)))
            flat = {
                name: ops.take(x, order, axis=0) for name, x in flat.items()
            }
            size = -(-num_tokens // num_parts)
            num_used = (ops.sum(ops.cast(mask, "int32")) + size - 1) // size
        parts = tree.map_structure(
            lambda x: parts_lib.pad_and_split(x, num_parts), flat
        )
        mapped = backend.map_parts(
            function, parts, self.embedding.variables, num_used
        )
        mapped = ops.reshape(mapped, (-1,))[:num_tokens]
        if places is not None:
            mapped = ops.take(mapped, places, axis=0)
        return ops.reshape(mapped, leading)

    def tokens_at_once(self):
        """Returns the number of tokens whose logits are held at once.

        If the embedding is trained, its gradient has the size of the logits of
        `width` tokens anyway, so fewer tokens would save little memory.
        """
        vocabulary, width = self.embedding.input_dim, self.embedding.output_dim
        tokens = max(1, MOST_LOGITS // vocabulary)
        return (
            max(tokens, width) if self.embedding.trainable_variables else tokens
        )
