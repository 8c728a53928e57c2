"""Draws for training, evaluation and generation, determined by a seed.

A random number depends only on (seed, purpose, prompt, sample, position), not
on the batch size, the order of calls or the backend. A prompt therefore gets
the same completions in one batch of 8 as in two accumulated batches of 4, on
JAX, TensorFlow and PyTorch, and a resumed run continues with the numbers that
the interrupted run would have used.
"""

import dataclasses
import functools

from keras import ops

from keras_bond.data.given import GIVEN_IDS
from keras_bond.formulas import sequences
from keras_bond.rollouts import images as images_lib

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA

# Part of the key: streams of different purposes are independent.
PURPOSES = (
    "policy",
    "anchor",
    "ties",
    "evaluate policy",
    "evaluate anchor",
    "evaluate ties",
    "generate",
)
MAX_POSITIONS = 2**20
MAX_SAMPLES = 2**11


class Rollout:
    """Draws completions for training, evaluation and generation.

    All draws are determined by the seed, the mode, and the numbers of prompt,
    sample and position, see `Stream`. Samples of the anchor may also be given
    with the prompts, which are then only read.

    Args:
        decoder: a `keras_bond.rollouts.Decoder`.
        reader: a `keras_bond.rollouts.Reader` of the same policy.
        weight_sets: a `keras_bond.training.weight_sets.WeightSets`.
    """

    def __init__(self, decoder, reader, weight_sets):
        self.decoder = decoder
        self.reader = reader
        self.weight_sets = weight_sets

    def embed_images(self, inputs, run_stage):
        """Runs the vision encoder, if a batch of prompts has images.

        It is frozen and the same in all weight sets. It therefore runs once
        for each batch, whose samples and passes share what it returns.

        Args:
            inputs: dict of tensors, see `PromptEncoder.to_batch`.
            run_stage: callable of a name, a function and tensors.

        Returns:
            `inputs` without pixels, and with a dict of tensors as `images`:
            `image_embeddings` `(batch, images, image_tokens, width)` and
            `vision_indices` int32 `(batch, images * image_tokens)`.
        """
        pixels = {k: inputs[k] for k in images_lib.PIXELS if k in inputs}
        if not pixels:
            return inputs
        embeddings = run_stage(
            "embed images",
            lambda pixels: images_lib.embed(self.decoder.policy, pixels),
            pixels,
        )
        images = {
            images_lib.EMBEDDINGS: embeddings,
            images_lib.INDICES: inputs[images_lib.INDICES],
        }
        taken = {*pixels, images_lib.INDICES}
        rest = {k: v for k, v in inputs.items() if k not in taken}
        return {**rest, "images": images}

    def plan_draws(self, inputs, counts):
        """Splits samples of several weight sets into stages.

        With LoRA all samples are drawn in one stage, in which the frozen
        weights are read and multiplied once for all of them.

        Args:
            inputs: see `draw`.
            counts: dict that maps the name of a weight set to an int, its
                samples per prompt.

        Returns:
            list of dicts such as `counts`, one for each call of `draw`.
        """
        counts = {name: count for name, count in counts.items() if count}
        shares = GIVEN_IDS not in inputs and self.weight_sets.can_share_a_pass()
        if shares or not counts:
            return [counts] if counts else []
        return [{name: count} for name, count in counts.items()]

    def draw(self, inputs, counts, stream):
        """Draws completions of each prompt from one or several weight sets.

        Args:
            inputs: dict of int32 tensors `prompt_ids` `(batch,
                prompt_length)` and `prompt_lengths` `(batch,)`; maybe
                `images`, see `embed_images`, and `given_ids` `(batch, k,
                max_completion_length)`, samples of the anchor.
            counts: dict that maps the name of a weight set to an int, its
                completions per prompt, if they are drawn. Several sets must
                be able to share a pass, see `plan_draws`.
            stream: a `Stream`.

        Returns:
            dict of tensors over `(batch, sum of the counts)`, see `Decoder`;
            over `(batch, k)` and without entropies of completions that are
            given.
        """
        names = tuple(counts)
        if names == ("anchor",) and GIVEN_IDS in inputs:
            stops = self.decoder.stop_token_ids
            return self.reader.read_given(
                inputs, inputs[GIVEN_IDS], stops, "anchor"
            )
        length = self.decoder.max_completion_length
        uniforms = [
            stream.uniforms(name, count, length)
            for name, count in counts.items()
        ]
        draw = functools.partial(
            self.decoder,
            inputs["prompt_ids"],
            inputs["prompt_lengths"],
            ops.concatenate(uniforms, axis=1),
            inputs.get("images"),
        )
        if len(names) > 1:
            using_each = self.weight_sets.of_rows(names)
            return draw(tuple(counts.values()), using_each)
        with self.weight_sets.using(names[0]):
            return draw()

    def collate(self, inputs, *drawn):
        """Concatenates the samples of each prompt and adds masks.

        Args:
            inputs: see `draw`.
            *drawn: dicts of tensors that `draw` returned for each weight set.

        Returns:
            dict of tensors over `(batch, samples)`: `completion_ids`, `mask`,
            `terminated`, `token_ids` and `padding_mask`, see
            `sequences.collate`.
        """
        completion_ids = ops.concatenate(
            [draws["completion_ids"] for draws in drawn], axis=1
        )
        return sequences.collate(
            inputs["prompt_ids"],
            inputs["prompt_lengths"],
            completion_ids,
            self.decoder.stop_token_ids,
        )


@dataclasses.dataclass(frozen=True)
class Stream:
    """The random numbers of a batch of prompts in one mode of use.

    Attributes:
        seed: int or int32 scalar tensor in [0, 2³¹). Seed of the run.
        mode: `"train"`, `"evaluate"` or `"generate"`. The numbers of
            different modes are independent.
        prompt_numbers: int32 tensor `(batch,)`. Number of each prompt in the
            run.
    """

    seed: object
    mode: str
    prompt_numbers: object

    def uniforms(self, purpose, num_samples, num_positions):
        """Uniform numbers in [0, 1), see `uniform`.

        Args:
            purpose: str. `"policy"` and `"anchor"` for tokens, `"ties"` for
                tie-breakers.
            num_samples: int. Completions per prompt.
            num_positions: int. Numbers per completion.

        Returns:
            float32 tensor `(batch, num_samples, num_positions)`.
        """
        name = {
            "train": purpose,
            "evaluate": f"evaluate {purpose}",
            "generate": "generate",
        }[self.mode]
        return uniform(
            self.seed, name, self.prompt_numbers, num_samples, num_positions
        )


def uniform(seed, purpose, prompt_numbers, num_samples, num_positions):
    """Returns the random numbers of `num_samples` completions per prompt.

    Args:
        seed: int in [0, 2³¹). Seed of the run.
        purpose: str, one of `PURPOSES`.
        prompt_numbers: int32 tensor `(batch,)`. Number of each prompt in the
            run.
        num_samples: int, at most 2¹¹. Completions per prompt.
        num_positions: int, at most 2²⁰. Numbers per completion.

    Returns:
        float32 tensor `(batch, num_samples, num_positions)` in [0, 1), with 24
        random bits each.
    """
    prompts = ops.reshape(ops.cast(prompt_numbers, "int32"), (-1, 1, 1))
    samples = ops.reshape(ops.arange(num_samples, dtype="int32"), (1, -1, 1))
    positions = ops.reshape(
        ops.arange(num_positions, dtype="int32"), (1, 1, -1)
    )
    within_prompt = samples * MAX_POSITIONS + positions
    zeros = ops.zeros_like(prompts) + ops.zeros_like(within_prompt)
    key = (zeros + seed, zeros + PURPOSES.index(purpose))
    bits, _ = threefry2x32(key, (zeros + prompts, zeros + within_prompt))
    bits = ops.bitwise_and(ops.right_shift(bits, 8), 2**24 - 1)
    return ops.cast(bits, "float32") * (1.0 / 2**24)


def threefry2x32(key, counter):
    """Threefry-2x32 with 20 rounds, a counter-based random bit generator.

    See Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    It is computed in int32, which wraps around in the same way on every
    backend. Unsigned integers are not fully supported by PyTorch, and 64-bit
    integers are disabled in JAX by default.

    Args:
        key: pair of int32 tensors.
        counter: pair of int32 tensors; all four broadcast.

    Returns:
        pair of int32 tensors of random bits.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x = x + y
            y = _rotate_left(y, rotation) ^ x
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + (block + 1)
    return x, y


def _rotate_left(x, bits):
    # Shifting a negative int32 to the right copies the sign: mask the copies.
    low = ops.bitwise_and(ops.right_shift(x, 32 - bits), (1 << bits) - 1)
    return ops.bitwise_or(ops.left_shift(x, bits), low)
