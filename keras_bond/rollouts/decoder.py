"""Token-by-token sampling from the full distribution of a policy."""

import contextlib
import functools
import math

import numpy as np
from keras import ops
from keras import tree

from keras_bond import backend
from keras_bond.data.given import GIVEN_IDS
from keras_bond.formulas import likelihood
from keras_bond.formulas import masks
from keras_bond.formulas import sequences
from keras_bond.rollouts import images as images_lib
from keras_bond.rollouts import network
from keras_bond.rollouts.network import CacheBuilder


class Decoder:
    """Draws several completions for each prompt of a batch.

    Each prompt is processed once, regardless of the number of samples. Its
    key-value cache has the length of the prompts; it is then repeated for the
    samples and enlarged for the completions. A row ends at its first stop
    token. Rows that have ended are removed during the loop, which stops when
    all have ended, see `backend.decode_loop`.

    Args:
        policy: a `keras_hub.models.CausalLM` with a key-value cache.
        max_completion_length: int. Maximum number of tokens drawn per row.
        stop_token_ids: tuple of int. Tokens that end a completion.
        temperature: float. Divides the logits. Defaults to 1.
    """

    def __init__(
        self,
        policy,
        max_completion_length,
        stop_token_ids,
        temperature=1.0,
    ):
        self.policy = policy
        self.max_completion_length = max_completion_length
        self.stop_token_ids = tuple(stop_token_ids)
        self.temperature = temperature
        self.cache_builder = CacheBuilder(policy)

    def __call__(
        self,
        prompt_ids,
        prompt_lengths,
        uniforms,
        images=None,
        counts=None,
        using_each=None,
    ):
        """Draws `num_samples` completions for each prompt.

        Args:
            prompt_ids: int32 tensor `(batch, prompt_length)`, padded on the
                right.
            prompt_lengths: int32 tensor `(batch,)`, at least 1 each.
            uniforms: float32 tensor
                `(batch, num_samples, max_completion_length)`.
            images: dict of tensors, see `Rollout.embed_images`, or `None`.
            counts: tuple of int. How many of the samples are drawn with each
                of several weight sets, or `None` for the current one.
            using_each: callable that takes an int32 tensor `(rows,)`, indices
                in `counts`, and returns a context in which each row runs with
                its own weight set; `None` without `counts`.

        Returns:
            dict of tensors over `(batch, num_samples)`:
            `completion_ids` int32 `(..., max_completion_length)`, padded with
            0 after the end; `log_probs` float32, `log π(y|x)` computed while
            decoding, in nats; `entropies` float32, mean entropy of the
            next-token distribution over the completion's tokens, in nats per
            token.
        """
        batch_size, num_samples, length = uniforms.shape
        total = prompt_ids.shape[1] + length
        counts = counts or (num_samples,)
        using_each = using_each or (lambda rows: contextlib.nullcontext())
        sets = np.tile(np.arange(len(counts), dtype="int32"), batch_size)
        with using_each(ops.convert_to_tensor(sets)):
            cache = self._read_prompts(prompt_ids, images, len(counts))
        cache = self.cache_builder.grow(cache, counts, total)
        state = self._start(
            sequences.repeat_rows(prompt_ids, num_samples),
            sequences.repeat_rows(prompt_lengths, num_samples),
            ops.reshape(uniforms, (batch_size * num_samples, length)),
        )
        sets = sequences.repeat_in_groups(ops.convert_to_tensor(sets), counts)
        state["weight_set"] = sets
        # One index serves all rows. The loop starts at the end of the shortest
        # prompt, where the first completion begins; rows with longer prompts
        # copy their prompt until their own completion begins, see `_step`.
        state = backend.decode_loop(
            functools.partial(
                self._step, keeps_prompts=bool(images), using_each=using_each
            ),
            ops.min(prompt_lengths),
            total,
            state,
            self.cache_builder.split(cache),
        )
        return self._collect(state, (batch_size, num_samples))

    def _read_prompts(self, prompt_ids, images, num_sets):
        inputs = {"token_ids": prompt_ids, **(images or {})}
        inputs = tree.map_structure(
            lambda x: sequences.repeat_rows(x, num_sets), inputs
        )
        cache = self.cache_builder.empty(*inputs["token_ids"].shape)
        return network.read_prompts(self.policy, inputs, cache)

    def _start(self, prompt_ids, prompt_lengths, uniforms):
        rows = prompt_ids.shape[0]
        return {
            "token_ids": ops.pad(
                prompt_ids, [(0, 0), (0, self.max_completion_length)]
            ),
            "prompt_lengths": prompt_lengths,
            "uniforms": uniforms,
            "ended": ops.zeros((rows,), "bool"),
            "log_probs": ops.zeros((rows,), "float32"),
            "entropies": ops.zeros((rows,), "float32"),
        }

    def _step(self, index, state, cache, keeps_prompts, using_each):
        """Processes the token at `index - 1` and chooses the one at `index`.

        A row whose prompt is longer than `index` processes a token of it once
        more. If this is one of an image, which the cache knows better,
        `keeps_prompts` leaves the cache as it is.
        """
        rows = state["token_ids"].shape[0]
        previous = ops.slice(state["token_ids"], (0, index - 1), (rows, 1))
        position = index - state["prompt_lengths"]
        kept = {}
        if keeps_prompts:
            kept["cache_update_mask"] = position[:, None] > 0
        with using_each(state["weight_set"]):
            logits, cache = network.read_tokens(
                self.policy,
                previous,
                self.cache_builder.join(cache),
                index - 1,
                **kept,
            )
        cache = self.cache_builder.split(cache)
        logits = ops.cast(logits[:, 0], "float32") / self.temperature
        last = self.max_completion_length - 1
        draws = ops.take_along_axis(
            state["uniforms"], ops.clip(position, 0, last)[:, None], axis=1
        )
        drawn, normalizers = inverse_cdf_sample(logits, draws[:, 0])
        # A row whose prompt is longer than `index` keeps the token that is
        # already there: its prompt is given, and no draw or stop token counts
        # in it. A row that has ended keeps the 0 of the padding.
        in_prompt = position < 0
        given = ops.slice(state["token_ids"], (0, index), (rows, 1))[:, 0]
        counts = ops.logical_not(ops.logical_or(in_prompt, state["ended"]))
        token = ops.where(counts, drawn, given)
        stops = masks.is_any_of(token, self.stop_token_ids)
        # The last position ends a row without a stop token. Otherwise a row
        # with a short prompt would draw more than `max_completion_length`
        # tokens while rows with longer prompts are still being completed.
        stops = ops.logical_or(stops, position >= last)
        chosen = ops.take_along_axis(logits, drawn[:, None], axis=1)[:, 0]
        log_probs = chosen - normalizers
        entropies = likelihood.token_entropies(logits)
        return {
            **state,
            "token_ids": ops.slice_update(
                state["token_ids"], (0, index), token[:, None]
            ),
            "ended": ops.logical_or(
                state["ended"], ops.logical_and(counts, stops)
            ),
            "log_probs": state["log_probs"] + ops.where(counts, log_probs, 0.0),
            "entropies": state["entropies"] + ops.where(counts, entropies, 0.0),
        }, cache

    def _collect(self, state, leading):
        completion_ids = sequences.completion_window(
            state["token_ids"],
            state["prompt_lengths"],
            self.max_completion_length,
        )
        mask = masks.completion_mask(completion_ids, self.stop_token_ids)
        length = ops.sum(ops.cast(mask, "float32"), axis=-1)
        return {
            "completion_ids": ops.reshape(completion_ids, (*leading, -1)),
            "log_probs": ops.reshape(state["log_probs"], leading),
            "entropies": ops.reshape(state["entropies"] / length, leading),
        }


class Rollout:
    """Draws completions for training, evaluation and generation.

    All draws are determined by the seed, the mode, and the numbers of prompt,
    sample and position, see `random_numbers.Stream`. Samples of the anchor may
    also be given with the prompts, which are then only read.

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
            stream: a `random_numbers.Stream`.

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


# The largest float32 below 1.
BELOW_ONE = 1.0 - 2.0**-24


def inverse_cdf_sample(logits, uniforms):
    """Draws from `softmax(logits)` by inverting the cumulative distribution.

    This needs one random number per row instead of one per entry of the
    vocabulary. The vocabulary is divided into about √V blocks of √V tokens. A
    search over the sums of the blocks finds the block, and a search within it
    the token, which avoids a cumulative sum over the whole vocabulary.

    Args:
        logits: float32 tensor `(rows, vocabulary)`; -inf for impossible tokens.
        uniforms: float32 tensor `(rows,)` in [0, 1).

    Returns:
        `(token_ids, log_normalizers)`: int32 tensor `(rows,)`, never a token
        of probability 0; float32 tensor `(rows,)`, `logsumexp` of the logits.
    """
    largest = ops.max(logits, axis=-1, keepdims=True)
    blocks = _into_blocks(ops.exp(logits - largest))
    sums = ops.sum(blocks, axis=-1)
    block, rest, total = _find(sums, uniforms)
    inside = ops.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    token, _, _ = _find(inside, rest)
    token_ids = block * blocks.shape[-1] + token
    return token_ids, ops.log(total) + largest[:, 0]


def _into_blocks(weights):
    """Reshapes `(rows, vocabulary)` to `(rows, blocks, √V)`, zero-padded."""
    vocabulary = weights.shape[1]
    size = 2 ** math.ceil(math.log2(vocabulary) / 2)
    missing = -vocabulary % size
    if missing:
        weights = ops.pad(weights, [(0, 0), (0, missing)])
    num_blocks = (vocabulary + missing) // size
    return ops.reshape(weights, (-1, num_blocks, size))


def _find(weights, uniforms):
    """Finds the entry whose interval of the cumulative sum has a number.

    Returns:
        `(index, rest, total)`: int32 tensor `(rows,)`; float32 tensor
        `(rows,)` in [0, 1), the relative position of the number in that
        interval; float32 tensor `(rows,)`, the sum of the weights.
    """
    cumulative = ops.cumsum(weights, axis=-1)
    total = cumulative[:, -1]
    # Rounding could move a number to the end of the last interval.
    targets = ops.minimum(uniforms, BELOW_ONE) * total * BELOW_ONE
    reached = ops.logical_and(cumulative > targets[:, None], weights > 0)
    index = ops.cast(ops.argmax(reached, axis=-1), "int32")
    width = ops.take_along_axis(weights, index[:, None], axis=1)[:, 0]
    end = ops.take_along_axis(cumulative, index[:, None], axis=1)[:, 0]
    rest = 1.0 - (end - targets) / width
    return index, ops.clip(rest, 0.0, BELOW_ONE), total
