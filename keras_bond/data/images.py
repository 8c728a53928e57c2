"""Images of prompts, from a column of the data to inputs of the network."""

import dataclasses
import functools

import keras
import numpy as np

from keras_bond.data.origin import MEMORY
from keras_bond.rewards.samples import IMAGES

# What these preprocessors take, or TRL names so, and policies do not read.
UNREAD = (
    "image",
    "videos",
    "video",
    "audio",
    "audios",
    "pixel_values",
    "audio_mel",
    "input_features",
)

# What stands for an image, a video or a sound in the prompts of some model.
PLACEHOLDERS = (
    "<start_of_image>",
    "<start_of_audio>",
    "<image_soft_token>",
    "<audio_soft_token>",
    "<|image|>",
    "<|video|>",
    "<|audio|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """How a family of KerasHub writes an image into a prompt.

    Attributes:
        written: str. Attribute of the preprocessor: the token that stands for
            an image in a prompt.
        expanded: str. What the preprocessor puts in its place.
    """

    written: str
    expanded: str


# By the class of the preprocessor.
FORMATS = {
    "Gemma3CausalLMPreprocessor": ImageFormat(
        "start_of_image_token", "\n\n{start}{tokens}{end}\n\n"
    ),
    "Gemma4CausalLMPreprocessor": ImageFormat(
        "image_placeholder", "{start}{tokens}{end}"
    ),
}


def reader_of(policy):
    """Returns the `ImageReader` of a policy; `None` if it takes no images.

    Args:
        policy: a `keras_hub.models.CausalLM`.
    """
    preprocessor = getattr(policy, "preprocessor", None)
    names = [kind.__name__ for kind in type(preprocessor).__mro__]
    formats = [FORMATS[name] for name in names if name in FORMATS]
    encoder = getattr(policy.backbone, "vision_encoder", None)
    converter = getattr(preprocessor, "image_converter", None)
    if not formats or encoder is None or converter is None:
        return None
    return ImageReader(preprocessor, encoder, formats[0])


class ImageReader:
    """Reads the images of prompts as a KerasHub preprocessor does.

    A prompt has as many placeholders as images, each of which becomes a fixed
    number of image tokens. Images are converted one by one: in KerasHub the
    pixels of an image depend on the largest of its batch.

    Args:
        preprocessor: the `Gemma3CausalLMPreprocessor` or
            `Gemma4CausalLMPreprocessor` of the policy, with an image
            converter.
        encoder: the vision encoder of the policy.
        image_format: the `ImageFormat` of that class.
    """

    def __init__(self, preprocessor, encoder, image_format):
        self.preprocessor = preprocessor
        self.encoder = encoder
        self.placeholder = getattr(preprocessor, image_format.written)
        self.image_format = image_format
        self.tokens_per_image = preprocessor.num_vision_tokens_per_image

    @property
    def max_images(self):
        """int. Most images of a prompt."""
        return self.preprocessor.max_images_per_prompt

    def expand(self, prompts):
        """Writes image tokens in the place of each placeholder.

        Args:
            prompts: list of str.
        """
        preprocessor = self.preprocessor
        expanded = self.image_format.expanded.format(
            start=preprocessor.start_of_image_token,
            tokens=preprocessor.image_placeholder * self.tokens_per_image,
            end=preprocessor.end_of_image_token,
        )
        return [text.replace(self.placeholder, expanded) for text in prompts]

    def check_tokens(self, token_ids, num_images, name):
        """Raises an error if a prompt does not have the tokens of its images.

        Args:
            token_ids: list of int.
            num_images: int. How many images the prompt comes with.
            name: str. The prompt, for the message.

        Raises:
            ValueError: naming the numbers of images and of placeholders.
        """
        token = self.preprocessor.tokenizer.image_placeholder_id
        found, size = token_ids.count(token), self.tokens_per_image
        if found != num_images * size:
            count = found // size if found % size == 0 else f"{found} / {size}"
            raise ValueError(
                f"A prompt must have one `{self.placeholder}` for each of its "
                f"images, which are in the column `{IMAGES}`; as token ids, "
                f"{size} image tokens for each. Received: {name} with "
                f"{num_images} images and {count} of `{self.placeholder}`"
            )
        if num_images > self.max_images:
            raise ValueError(
                "A prompt must not have more images than the preprocessor "
                "takes: set `policy.preprocessor.max_images_per_prompt = "
                f"{num_images}`. Received: {name} with {num_images} images, "
                f"max_images_per_prompt={self.max_images}"
            )
        if token in (token_ids[:1] + token_ids[-1:]):
            raise ValueError(
                "A prompt must not begin or end with a token of an image: put "
                "the start token before it, and the end of the image behind. "
                f"Received: image token {token} at an end of {name}"
            )

    def standardize(self, column, origin=MEMORY):
        """Turns a column into a list of images for each prompt.

        Args:
            column: list with an entry for each prompt: one image, a list or
                array of several, or `None` for none.
            origin: the `Origin` of the prompts.

        Returns:
            list of lists of arrays `(height, width, 3)`, which cannot be
            written to.

        Raises:
            TypeError, ValueError: if an entry is not an image, or images
                would not have the size that the encoder needs.
        """
        self._check_sizes()
        is_scaled = self.preprocessor.image_converter.scale is not None
        images = [
            [_image(x, is_scaled, origin.name(i)) for x in _listed(entry)]
            for i, entry in enumerate(column)
        ]
        for i, pictures in enumerate(images):
            for picture in pictures:
                self._check_ratio(picture, origin.name(i))
        return images

    def to_arrays(self, token_ids, images):
        """Returns the inputs of the network for the images of a batch.

        Args:
            token_ids: list of lists of int, the prompts.
            images: list of lists of arrays, see `standardize`.

        Returns:
            dict of arrays `(batch, max_images, ...)`, named as the inputs of
            the network, of what the converter makes of an image; and
            `vision_indices` int32 `(batch, max_images * tokens_per_image)`,
            the positions of the image tokens, then 0.
        """
        token = self.preprocessor.tokenizer.image_placeholder_id
        slots = self.max_images * self.tokens_per_image
        indices = np.zeros((len(token_ids), slots), "int32")
        rows = []
        for row, (ids, pictures) in enumerate(zip(token_ids, images)):
            places = np.flatnonzero(np.asarray(ids) == token)
            indices[row, : len(places)] = places
            converted = [self._convert(picture) for picture in pictures]
            missing = self.max_images - len(converted)
            rows.append([*converted, *[self._blank] * missing])
        pixels = {
            name: np.stack([[one[name] for one in row] for row in rows])
            for name in self._blank
        }
        return {**pixels, "vision_indices": indices}

    def _check_ratio(self, image, name):
        """Raises an error if an image is too thin for its number of tokens.

        KerasHub's converter of Gemma 4 gives an image tokens of its own shape,
        at least one in height and in width.
        """
        if not hasattr(self.preprocessor.image_converter, "max_soft_tokens"):
            return
        short, long = sorted(image.shape[:2])
        if long > self.tokens_per_image * short:
            raise ValueError(
                "The long side of an image must be at most "
                f"{self.tokens_per_image} times its short one, or it does not "
                "fit into that many tokens: cut it, or add a border. "
                f"Received: an image of shape {image.shape} in {name}"
            )

    def _check_sizes(self):
        """Raises an error if preprocessor and encoder do not fit together."""
        converter, encoder = self.preprocessor.image_converter, self.encoder
        if hasattr(converter, "max_soft_tokens"):
            found = {
                "max_soft_tokens": converter.max_soft_tokens,
                "patch_size": converter.patch_size,
                "pooling_kernel_size": converter.pooling_kernel_size,
            }
            needed = {
                "max_soft_tokens": self.tokens_per_image,
                "patch_size": encoder.patch_size,
                "pooling_kernel_size": encoder.pool_size,
            }
        else:
            size = encoder.image_size
            tokens = encoder.num_vision_tokens_per_image
            name = "num_vision_tokens_per_image"
            found = {
                name: self.tokens_per_image,
                "image_size": converter.image_size,
            }
            needed = {name: tokens, "image_size": (size, size)}
        if found != needed:
            raise ValueError(
                "The image converter of the preprocessor must fit the vision "
                "encoder: set `policy.preprocessor.image_converter`, as after "
                "loading a Gemma 4 with sizes of its own, which KerasHub does "
                f"not save. Received: {found}, needed: {needed}"
            )

    @functools.cached_property
    def _blank(self):
        """What stands in the place of an image where a prompt has fewer."""
        return self._convert(np.zeros((1, 1, 3), "uint8"))

    def _convert(self, image):
        # KerasHub rounds what it resizes of integers of 8 bits.
        if image.dtype != "uint8":
            image = image.astype("float32")
        converted = self.preprocessor.image_converter(image[None])
        if not isinstance(converted, dict):
            converted = {IMAGES: converted}
        return {
            name: keras.ops.convert_to_numpy(value)[0]
            for name, value in converted.items()
        }


def check_columns(names, reader):
    """Raises an error if a policy would not read a column that is meant for it.

    Args:
        names: names of the columns, without that of the prompts.
        reader: the `ImageReader` of the policy, or `None`.

    Raises:
        ValueError: naming the column.
    """
    unread = UNREAD if reader is not None else (*UNREAD, IMAGES)
    for name in names:
        if name in unread:
            reads = f"text and `{IMAGES}`" if reader is not None else "text"
            raise ValueError(
                f"This policy reads {reads}, and not the column `{name}`: "
                f"{_way_out(name, reader)}, rename the column if only the "
                "reward needs it, or leave it out. Received: columns "
                f"{sorted(map(str, names))}"
            )


def check_placeholders(prompts, reader, origin=MEMORY):
    """Raises an error for a placeholder that a policy would read as text.

    Args:
        prompts: list of str.
        reader: the `ImageReader` of the policy, or `None`.
        origin: the `Origin` of the prompts.

    Raises:
        ValueError: naming the placeholder and the prompt.
    """
    own = None if reader is None else reader.placeholder
    for i, prompt in enumerate(prompts):
        for token in PLACEHOLDERS:
            if token != own and token in prompt:
                reads = f"text and `{own}`" if own else "text"
                raise ValueError(
                    f"This policy reads {reads}, and not `{token}`: remove it, "
                    "load a preset that takes images with its preprocessor, or "
                    f"pass token ids. Received: {prompt[:80]!r} as "
                    f"{origin.name(i)}"
                )


def _way_out(name, reader):
    if name == IMAGES:
        return (
            "load a Gemma 3 or Gemma 4 preset that takes images, with its "
            "preprocessor"
        )
    if name == "image" and reader is not None:
        return f"call it `{IMAGES}`"
    return "videos and audio are not supported"


def _listed(entry):
    """The images of one prompt as a list."""
    entry = _plain(entry)
    if entry is None or (_num_axes(entry) in (1, 4) and len(entry) == 0):
        return []
    if isinstance(entry, (list, tuple)):
        # Three nested lists of numbers are one image.
        is_one = isinstance(entry[0], (list, tuple)) and _num_axes(entry) == 3
    else:
        is_one = _num_axes(entry) != 4
    return [entry] if is_one else list(entry)


def _plain(value):
    """An array of NumPy or lists, of what a column may hold instead."""
    value = value.numpy() if hasattr(value, "numpy") else value
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return _plain(value.tolist())
    return value


def _num_axes(value):
    if isinstance(value, (list, tuple)):
        return 1 + (_num_axes(value[0]) if len(value) else 0)
    return len(getattr(value, "shape", ()))


def _image(value, is_scaled, name):
    """An image as an array that cannot be written to.

    Raises:
        TypeError: if it is not numbers.
        ValueError: if its shape or its values are not those of an image.
    """
    value = _plain(value)
    try:
        array = np.asarray(value).view()
    except ValueError:
        array = np.array(value, dtype=object)
    if array.dtype.kind not in "uif":
        raise TypeError(
            "Images must be arrays of numbers: open files first, as in "
            "`np.asarray(PIL.Image.open(path).convert('RGB'))`. Received: "
            f"{str(value)[:80]!r} of type {type(value).__name__} in {name}"
        )
    if array.ndim > 0 and array.size == 0:
        raise ValueError(
            "Images must have at least one pixel. "
            f"Received: an image of shape {array.shape} in {name}"
        )
    if array.ndim != 3 or array.shape[-1] != 3:
        raise ValueError(
            "Images must be of shape (height, width, 3), with the colors last: "
            'convert grayscale and transparent ones of PIL by .convert("RGB"). '
            f"Received: an image of shape {array.shape} in {name}"
        )
    low, high = float(array.min()), float(array.max())
    fits = 0 <= low and high <= 255
    if array.dtype.kind == "f" and high <= 1:
        fits = low == high == 0
    if not np.isfinite([low, high]).all() or (is_scaled and not fits):
        raise ValueError(
            "Images must have values from 0 to 255, which the image converter "
            "of the preprocessor scales: multiply those between 0 and 1 by "
            f"255. Received: {array.dtype} values from {low:g} to {high:g} in "
            f"{name}"
        )
    array.setflags(write=False)
    return array
