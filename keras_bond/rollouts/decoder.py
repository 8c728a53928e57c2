"""Token-by-token sampling with a key-value cache."""

import contextlib
import functools
import inspect
import math

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_bond import backend
from keras_bond.formulas import likelihood
from keras_bond.formulas import masks
from keras_bond.formulas import sequences
from keras_bond.rollouts import network
from keras_bond.rollouts import sizes

# Two lengths; the axis of a cache that differs between them is the token axis.
PROBES = (8, 16)


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
        return network.read_hidden(self.policy, inputs, cache)[1]

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
            logits, _, cache = network.read_tokens(
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
        self.length_axes = tree.map_structure(_length_axis, short, long)
        self._stacked = _stacked_sizes(
            short, len(network.blocks(policy.backbone))
        )

    def _layout(self, length):
        token_ids = keras.KerasTensor((1, length), dtype="int32")
        return self.compute_output_spec(token_ids)

    def call(self, token_ids):
        build = self.policy._build_cache
        num_extras = len(inspect.signature(build).parameters) - 1
        return build(token_ids, *[None] * num_extras)[1]

    def empty(self, batch_size, length):
        """Returns a cache of zeros for `batch_size` rows of `length` tokens."""
        return tree.map_structure(
            lambda leaf, axis: ops.zeros(
                _resized(leaf.shape, axis, batch_size, length), leaf.dtype
            ),
            self.spec,
            self.length_axes,
        )

    def num_bytes(self, batch_size, length):
        """Returns the bytes of a cache of `batch_size` rows by `length`."""
        leaves = zip(tree.flatten(self.spec), tree.flatten(self.length_axes))
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
            leaf = sequences.repeat_in_groups(leaf, counts)
            return _with_room(leaf, axis, length)

        return tree.map_structure(grow_leaf, cache, self.length_axes)

    def grow_block(self, cache, length):
        """Makes room for more tokens in what a block is given of a cache.

        Args:
            cache: tensor or structure of tensors `(rows, ...)`.
            length: int. See `grow`.
        """
        axis = tree.flatten(self.length_axes)[0]
        rank = len(tree.flatten(self.spec)[0].shape)

        def grow_leaf(leaf):
            # One tensor for all blocks has an axis for them before this one.
            own_axis = axis - (rank - len(leaf.shape))
            return _with_room(leaf, own_axis, length)

        return tree.map_structure(grow_leaf, cache)

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


def _with_room(leaf, axis, length):
    room = [(0, 0)] * len(leaf.shape)
    room[axis] = (0, length - leaf.shape[axis])
    return ops.pad(leaf, room)


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
