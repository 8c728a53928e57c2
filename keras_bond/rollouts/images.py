"""Images of prompts on the device: embeddings, and their places in a prompt."""

import math

from keras import ops

# What a batch of prompts has of its images: inputs of the vision encoder.
PIXELS = ("images", "pixel_values", "pixel_position_ids")
# What a network reads instead: embeddings, which the encoder makes of them,
# and the positions of the image tokens, then 0; both over `(rows, ...)`.
EMBEDDINGS = "image_embeddings"
INDICES = "vision_indices"


def embed(policy, pixels):
    """Runs the vision encoder of a policy, image by image.

    The encoder of Gemma 4 pools all images of a batch by the width of its
    widest (`n_w_pooled` in keras_hub/src/models/gemma4/
    gemma4_vision_encoder.py), which is right for one image at a time. That
    bounds the memory, too.

    Args:
        policy: a `keras_hub.models.CausalLM` with a vision encoder.
        pixels: dict of tensors `(batch, images, ...)`, its inputs.

    Returns:
        float tensor `(batch, images, image_tokens, width)`.
    """
    encoder = policy.backbone.vision_encoder
    is_named = isinstance(encoder.input, dict)
    leading = next(iter(pixels.values())).shape[:2]
    flat = {
        name: ops.reshape(x, (math.prod(leading), 1, 1, *x.shape[2:]))
        for name, x in pixels.items()
    }

    def embed_one(image):
        (first,) = image.values() if not is_named else (image,)
        embeddings = encoder(first, training=False)
        return ops.reshape(embeddings, embeddings.shape[-2:])

    embeddings = ops.map(embed_one, flat)
    return ops.reshape(embeddings, (*leading, *embeddings.shape[1:]))


def as_encoded(backbone, embeddings):
    """Returns embeddings `(rows, ...)` in the shape of the encoder's output."""
    if isinstance(backbone.vision_encoder.input, dict):
        return embeddings
    # Gemma 3 has one axis for all images of a batch.
    return ops.reshape(embeddings, (-1, *embeddings.shape[2:]))


def interleave(image_embeddings, text_embeddings, vision_indices):
    """Puts embeddings of images in the places of their tokens.

    It takes the place of KerasHub's layers, which add a column of offsets to
    `vision_indices` by `ops.add`. On TensorFlow that is a row where the indices
    are as many as the rows (`add` in keras/src/backend/tensorflow/numpy.py
    takes it for a bias), and the embeddings get to other places.

    Args:
        image_embeddings: float tensor `(rows, images, image_tokens, width)`, or
            `(rows * images, image_tokens, width)`. Of images with fewer tokens,
            those at the end are not used.
        text_embeddings: float tensor `(rows, length, width)`.
        vision_indices: int32 tensor `(rows, images * tokens)`: positions,
            then 0.

    Returns:
        float tensor `(rows, length, width)`.
    """
    rows, length, width = text_embeddings.shape
    by_row = ops.reshape(
        image_embeddings, (rows, -1, *image_embeddings.shape[-2:])
    )
    tokens = vision_indices.shape[1] // by_row.shape[1]
    flat = ops.reshape(by_row[:, :, :tokens], (rows, -1, width))
    is_here = _is_here(vision_indices, length)
    sources = ops.argmax(ops.cast(is_here, "int32"), axis=1)
    found = ops.take_along_axis(flat, sources[:, :, None], axis=1)
    return ops.where(
        ops.any(is_here, axis=1)[:, :, None],
        ops.cast(found, text_embeddings.dtype),
        text_embeddings,
    )


def mask(indices, length):
    """Where the image tokens are.

    Args:
        indices: int32 tensor `(rows, image_tokens)`: their positions, then 0.
        length: int.

    Returns:
        bool tensor `(rows, length)`. False at position 0, where no image is.
    """
    return ops.any(_is_here(indices, length), axis=1)


def _is_here(indices, length):
    """Which image token is where: bool `(rows, image_tokens, length)`."""
    positions = ops.arange(length, dtype="int32")
    is_here = indices[:, :, None] == positions
    return ops.logical_and(is_here, positions > 0)


def cache_arguments(backbone, inputs):
    """Returns what `call_with_cache` needs to read prompts with images.

    Args:
        backbone: that of the policy.
        inputs: dict of tensors: `token_ids` int32 `(rows, length)`, and those
            named `EMBEDDINGS` and `INDICES`.
    """
    indices = inputs[INDICES]
    return {
        "img_embeddings": as_encoded(backbone, inputs[EMBEDDINGS]),
        "vision_indices": indices,
        "vision_mask": mask(indices, inputs["token_ids"].shape[1]),
    }


def attention_calls(blocks):
    """Methods with which the tokens of an image see each other, where they do.

    The larger Gemma 4 were trained so. KerasHub's blocks forget it where there
    is a cache (`_compute_attention_mask` in keras_hub/src/models/gemma4/
    gemma4_decoder_block.py), and log-probabilities would be those of another
    network than the one that decodes.

    Args:
        blocks: list of layers, those of the network.

    Returns:
        dict for `layer_calls.replaced`, for a cache of the prompts' length.
    """
    name = "_compute_attention_mask"
    return {
        (block, name): _without_cache(getattr(block, name))
        for block in blocks
        if getattr(block, "use_vision_bidirectional_attention", False)
    }


def _without_cache(compute_mask):
    def call(x, padding_mask, vision_mask, cache, cache_update_index):
        del cache, cache_update_index
        return compute_mask(x, padding_mask, vision_mask, None, 0)

    return call
