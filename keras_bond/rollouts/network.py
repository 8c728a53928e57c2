"""Interface to KerasHub language models: inputs, head, embedding, cache.

No other module depends on which inputs a family of networks has, how it
computes logits, which layers it is made of, or how it lays out a cache.
"""

import inspect
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
from keras_bond.formulas import sequences
from keras_bond.rollouts import images
from keras_bond.rollouts import sizes

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
# Two lengths; the axis of a cache that differs between them is the token axis.
PROBES = (8, 16)
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
    interleave = backbone.interleave_embeddings
    return {
        (backbone.vision_encoder, "call"): lambda *args, **kwargs: embeddings,
        (interleave, "call"): interleave.call,
    }


def _only_text(image_embeddings, text_embeddings, vision_indices):
    del image_embeddings, vision_indices
    return text_embeddings


def read_prompts(policy, inputs, cache):
    """Fills a cache with prompts, without computing logits.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        inputs: dict of tensors: `token_ids` int32 `(rows, length)`, padded on
            the right; of prompts with images also those that are named in
            `images.py`.
        cache: what `CacheBuilder.empty(rows, length)` returned.

    Returns:
        the filled cache.
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
    with layer_calls.replaced(calls):
        return read_tokens(policy, token_ids, cache, 0, **arguments)[1]


def read_tokens(policy, token_ids, cache, index, **arguments):
    """Reads tokens at an index and adds their keys and values to a cache.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        token_ids: int32 tensor `(rows, tokens)`.
        cache: the cache of the tokens before `index`.
        index: int, or int32 scalar tensor. Position of the first token.
        **arguments: of `call_with_cache`, for prompts with images.

    Returns:
        `(logits, cache)`: tensor `(rows, tokens, vocabulary)`, and the cache.
    """
    if is_a(policy, NEEDS_TENSOR_INDEX):
        index = ops.convert_to_tensor(index, "int32")
    logits, _, cache = policy.call_with_cache(
        token_ids, cache, index, **arguments
    )
    return logits, cache


class CacheBuilder(keras.Operation):
    """Creates empty key-value caches for a policy and enlarges filled ones.

    KerasHub's decoders share `call_with_cache`, but the layout of the cache
    differs. The layout is inferred once, symbolically, without computing
    anything.

    Args:
        policy: a `keras_hub.models.CausalLM`.

    Raises:
        ValueError: if the first axis of a cache is not the batch axis, or if
            there is not exactly one token axis.
    """

    def __init__(self, policy):
        super().__init__()
        self.policy = policy
        short, long = (self._layout(length) for length in PROBES)
        self.spec = short
        self.length_axes = keras.tree.map_structure(_length_axis, short, long)
        self._stacked = _stacked_sizes(short, len(blocks(policy.backbone)))

    def _layout(self, length):
        token_ids = keras.KerasTensor((1, length), dtype="int32")
        return self.compute_output_spec(token_ids)

    def call(self, token_ids):
        build = self.policy._build_cache
        num_extras = len(inspect.signature(build).parameters) - 1
        return build(token_ids, *[None] * num_extras)[1]

    def empty(self, batch_size, length):
        """Returns a cache of zeros for `batch_size` rows of `length` tokens."""
        return keras.tree.map_structure(
            lambda leaf, axis: ops.zeros(
                _resized(leaf.shape, axis, batch_size, length), leaf.dtype
            ),
            self.spec,
            self.length_axes,
        )

    def num_bytes(self, batch_size, length):
        """Returns the bytes of a cache of `batch_size` rows by `length`."""
        leaves = zip(
            keras.tree.flatten(self.spec), keras.tree.flatten(self.length_axes)
        )
        return sum(
            math.prod(_resized(leaf.shape, axis, batch_size, length))
            * sizes.itemsize(leaf.dtype)
            for leaf, axis in leaves
        )

    def grow(self, cache, counts, length):
        """Repeats every row and makes room for more tokens.

        Args:
            cache: a cache of `(batch * len(counts), ...)`.
            counts: tuple of int. Number of adjacent copies of the rows of each
                group, see `sequences.repeat_in_groups`.
            length: int. Number of tokens that the new cache holds.

        Returns:
            a cache of `(batch * sum(counts), ...)`.
        """

        def grow_leaf(leaf, axis):
            room = [(0, 0)] * len(leaf.shape)
            room[axis] = (0, length - leaf.shape[axis])
            return ops.pad(sequences.repeat_in_groups(leaf, counts), room)

        return keras.tree.map_structure(grow_leaf, cache, self.length_axes)

    def split(self, cache):
        """Splits a cache that holds all blocks into those of each block.

        Many families take their blocks' keys and values out of one tensor and
        stack them again, which copies the cache at every token. XLA removes a
        stack whose parts are taken out again, and a cache that is split between
        two tokens is not stacked at all. This is what
        `test_a_token_does_not_stack_the_caches_of_blocks` in
        tests/distribution/test_devices_agree.py watches.
        """
        if self._stacked is None:
            return cache
        num_blocks, pair = self._stacked
        return [
            [cache[:, block][:, i] for i in range(pair)]
            for block in range(num_blocks)
        ]

    def join(self, split):
        """Returns the cache that `split` has split."""
        if self._stacked is None:
            return split
        return ops.stack([ops.stack(pair, axis=1) for pair in split], axis=1)


def _stacked_sizes(spec, num_blocks):
    """`(blocks, 2)`, if a cache is one tensor `(rows, blocks, 2, ...)`."""
    shape = getattr(spec, "shape", ())
    stacks = backend.name != "torch" and shape[1:3] == (num_blocks, 2)
    return shape[1:3] if stacks else None


def _resized(shape, axis, batch_size, length):
    shape = [batch_size, *shape[1:]]
    shape[axis] = length
    return tuple(shape)


def _length_axis(short, long):
    differing = [
        axis
        for axis, sizes in enumerate(zip(short.shape, long.shape))
        if sizes != (sizes[0], sizes[0])
    ]
    sizes = [(short.shape[axis], long.shape[axis]) for axis in differing]
    if short.shape[0] == 1 and sizes == [PROBES]:
        return differing[0]
    raise ValueError(
        "The key-value cache of `policy` must have the batch as its first "
        "axis and one axis for the tokens, as KerasHub's decoders do. "
        f"Received: a cache of shape {short.shape} for 1 row of {PROBES[0]} "
        f"tokens, and {long.shape} for {PROBES[1]}"
    )


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
