"""Log-probabilities and exact KLs of given completions, all tokens in parallel.

A prompt is the beginning of the rows of all of its completions. It is read once
for all of them, with gradients: it fills a key-value cache, which is repeated
for the completions, and these continue it. The idea is that of Prefix Grouper
(Liu et al., 2025, arXiv 2506.05433). A cache has one index for all rows, so
the padding of prompts comes first here. It shifts the positions of whole rows,
which changes nothing where only distances between tokens count.
"""

import contextlib
import functools

from keras import ops
from keras import tree

from keras_bond import backend
from keras_bond.backend import layer_calls
from keras_bond.backend import parts as parts_lib
from keras_bond.backend import ragged
from keras_bond.formulas import divergences
from keras_bond.formulas import likelihood
from keras_bond.formulas import masks
from keras_bond.formulas import sequences
from keras_bond.rollouts import network
from keras_bond.rollouts.network import Head

# The network is compiled once for prompts and once for completions, which is
# not worth while for fewer tokens of a batch, if they need not be read.
MIN_TOKENS_SAVED = 256


class Reader:
    """Computes log-probabilities and KLs of given completions.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        head: the `keras_bond.rollouts.Head` of the policy.
        using: callable that takes the name of a weight set and returns a
            context in which the policy runs with it.
        cache_builder: the `cache_builder` of the policy's `Decoder`.

    Attributes:
        groups: the groups of rows in `truncated`, `None` outside of it.
    """

    def __init__(self, policy, head, using, cache_builder):
        self.policy = policy
        self.head = head
        self.using = using
        self.cache_builder = cache_builder
        self.groups = None

    def truncated(self, mask, function):
        """Calls a function that reads completions, truncated to their length.

        On JAX and TensorFlow the function is compiled twice, for rows sorted
        into truncated groups and for whole rows, and the lengths choose when
        the program runs.

        Args:
            mask: bool tensor `(batch, samples, completion_length)`.
            function: callable without arguments that calls `read`.

        Returns:
            what `function` returned.
        """
        groups, fits = ragged.groups_for(mask)
        if groups is None:
            return function()

        def in_groups():
            with self._using_groups(groups):
                return function()

        return ops.cond(fits, in_groups, function)

    @contextlib.contextmanager
    def _using_groups(self, groups):
        self.groups = groups
        try:
            yield
        finally:
            self.groups = None

    def read(self, inputs, rematerialize=False, num_parts=1):
        """Computes `log π(y|x)`, of rows in groups inside `truncated`.

        Args:
            inputs: see `hidden`.
            rematerialize: bool. See `completion_hidden`.
            num_parts: int. In so many parts that are recomputed in the backward
                pass, or more, if rows are in groups.

        Returns:
            float32 tensor `(batch, samples)`, in nats.
        """
        if self.groups is None:
            return self.log_probs(inputs, self.hidden(inputs, rematerialize))
        rows = self._rows(inputs, rematerialize)
        size = rows["prompt_ids"].shape[1] + rows["mask"].shape[1]
        parts, places = ragged.sort(rows, self.groups)
        hidden = [
            _in_parts(
                lambda part: self._hidden(part, rematerialize),
                part,
                ragged.num_parts(
                    (group[0], part["prompt_ids"].shape[1] + group[1]),
                    rows["mask"].shape[0],
                    size,
                    num_parts,
                ),
                self.policy.variables,
            )
            for part, group in zip(parts, self.groups)
        ]
        # One loop of the head reads the tokens of all groups.
        ids, mask = (
            _flat([part[name] for part in parts])
            for name in ("completion_ids", "mask")
        )
        tokens = self.head.token_log_probs(_flat(hidden), ids, mask)
        log_probs, start = [], 0
        for part in parts:
            mask = part["mask"]
            stop = start + mask.shape[0] * mask.shape[1]
            found = ops.reshape(tokens[start:stop], mask.shape)
            log_probs.append(likelihood.sequence_log_probs(found, mask))
            start = stop
        log_probs = ops.take(ops.concatenate(log_probs), places, axis=0)
        return ops.reshape(log_probs, inputs["mask"].shape[:2])

    def hidden(self, inputs, rematerialize=False, share_prompts=True):
        """Computes the hidden states that predict each completion token.

        Args:
            inputs: dict of tensors: `prompt_ids` int32 `(batch,
                prompt_length)`, `prompt_lengths` int32 `(batch,)`,
                `completion_ids` int32 and `mask` bool `(batch, samples,
                completion_length)`; maybe `images`, see
                `Rollout.embed_images`.
            rematerialize: bool. See `completion_hidden`.
            share_prompts: bool. Whether a prompt may be read once for all of
                its completions.

        Returns:
            float tensor `(batch, samples, completion_length, width)`.
        """
        rows = self._rows(inputs, rematerialize, share_prompts)
        hidden = self._hidden(rows, rematerialize)
        leading = inputs["mask"].shape
        return ops.reshape(hidden, (*leading, hidden.shape[-1]))

    def _rows(self, inputs, rematerialize, share_prompts=True):
        """Arguments of `_hidden`: one row per sample."""
        rows = _repeated(inputs)
        batch_size, num_samples, _ = inputs["mask"].shape
        sizes = batch_size, num_samples, inputs["prompt_ids"].shape[1]
        share_prompts = share_prompts and "images" not in inputs
        if share_prompts and self.shares_prompts(*sizes):
            cache = self._read_prompts(
                inputs["prompt_ids"], inputs["prompt_lengths"], rematerialize
            )
            rows["cache"] = tree.map_structure(
                lambda x: sequences.repeat_rows(x, num_samples), cache
            )
        return rows

    def shares_prompts(self, batch_size, num_samples, prompt_length):
        """Whether prompts without images are read once for all completions.

        It depends on shapes and on the family only.

        Args:
            batch_size: int.
            num_samples: int. Completions of a prompt.
            prompt_length: int.
        """
        # Keras warns of attention to a single token.
        length = prompt_length - 1 if prompt_length > 2 else 0
        saved = batch_size * (num_samples - 1) * length
        return saved >= MIN_TOKENS_SAVED and network.can_read_after_prompts(
            self.policy
        )

    def _read_prompts(self, prompt_ids, prompt_lengths, rematerialize):
        """Fills a cache with all tokens of prompts but the last.

        The last token is read with each completion, whose first token it
        predicts.
        """
        batch_size, size = prompt_ids.shape
        starts = size - ops.convert_to_tensor(prompt_lengths)
        places = ops.arange(size - 1, dtype="int32") - starts[:, None]
        token_ids = ops.take_along_axis(
            prompt_ids, ops.maximum(places, 0), axis=1
        )
        cache = self.cache_builder.empty(batch_size, size - 1)
        return self._read_after(token_ids, starts, cache, 0, rematerialize)[1]

    def _hidden(self, rows, rematerialize):
        if "cache" not in rows:
            return completion_hidden(
                self.policy, **rows, rematerialize=rematerialize
            )
        lengths, completion_ids = rows["prompt_lengths"], rows["completion_ids"]
        size = rows["prompt_ids"].shape[1]
        last = ops.take_along_axis(
            rows["prompt_ids"], lengths[:, None] - 1, axis=1
        )
        token_ids = ops.concatenate([last, completion_ids[:, :-1]], axis=1)
        return self._read_after(
            token_ids, size - lengths, rows["cache"], size - 1, rematerialize
        )[0]

    def _read_after(self, token_ids, starts, cache, index, rematerialize):
        """Does what `network.read_hidden` does, without seeing padding.

        Args:
            token_ids, cache, index: see `network.read_tokens`. The cache needs
                no room for these tokens.
            starts: see `network.hiding_padding`.
            rematerialize: bool. See `completion_hidden`.
        """
        backbone = self.policy.backbone
        length = index + token_ids.shape[1]
        grow = functools.partial(self.cache_builder.grow_block, length=length)
        with (
            network.hiding_padding(backbone, starts, grow),
            _in_parallel(backbone, rematerialize),
        ):
            return network.read_hidden(
                self.policy, {"token_ids": token_ids}, cache, index
            )

    def log_probs(self, inputs, hidden):
        """Computes `log π(y|x)` of the completions with the current head.

        Args:
            inputs: see `hidden`.
            hidden: what `hidden` returned.

        Returns:
            float32 tensor `(batch, samples)`, in nats.
        """
        log_probs = self.head.token_log_probs(
            hidden, inputs["completion_ids"], inputs["mask"]
        )
        return likelihood.sequence_log_probs(log_probs, inputs["mask"])

    def read_given(self, inputs, completion_ids, stop_token_ids, weights):
        """Computes what the decoder returns of completions that it draws.

        Args:
            inputs: see `hidden`, without completions.
            completion_ids: int32 tensor `(batch, samples,
                completion_length)`.
            stop_token_ids: tuple of int. Tokens that end a completion.
            weights: str. Name of the weight set.

        Returns:
            dict of tensors: `completion_ids`, and `log_probs` float32
            `(batch, samples)`, `log π(y|x)` under that weight set.
        """
        shape = completion_ids.shape
        rows = ops.reshape(completion_ids, (-1, shape[-1]))
        mask = masks.completion_mask(rows, stop_token_ids)
        given = {"completion_ids": completion_ids}
        inputs = {**inputs, **given, "mask": ops.reshape(mask, shape)}
        with self.using(weights):
            log_probs = self.log_probs(inputs, self.hidden(inputs))
        return {**given, "log_probs": log_probs}

    def read_others(self, inputs, names):
        """Computes log-probabilities under other weight sets than the policy's.

        Args:
            inputs: see `hidden`.
            names: tuple of str, the weight sets.

        Returns:
            dict of float32 tensors `(batch, samples)`, such as
            `anchor_log_probs`, in nats.
        """
        log_probs = {}
        for name in names:
            with self.using(name):
                log_probs[f"{name}_log_probs"] = self.read(inputs)
        return log_probs

    def compare(self, inputs, names):
        """Computes what `read_others` does, and KLs of the policy.

        Args:
            inputs, names: see `read_others`.

        Returns:
            dict of float32 tensors `(batch, samples)`, in nats: entries such as
            `anchor_log_probs` and `anchor_kls`, see `kls`.
        """
        hidden, compared = self.hidden(inputs), {}
        for name in names:
            with self.using(name):
                other = self.hidden(inputs)
                log_probs = self.log_probs(inputs, other)
            kls = self.kls(inputs, hidden, other, name)
            compared[f"{name}_log_probs"] = log_probs
            compared[f"{name}_kls"] = kls
        return compared

    def kls(self, inputs, hidden, other_hidden, other):
        """Computes the KL of the policy to another weight set.

        It is exact over the vocabulary at each token, and summed over the
        tokens of the completions.

        Args:
            inputs: see `hidden`.
            hidden, other_hidden: what `hidden` returned with the policy's
                weights and with the other's.
            other: str. Name of the other weight set.

        Returns:
            float32 tensor `(batch, samples)`, in nats.
        """

        def token_kls(part):
            logits = self.head.logits(part["hidden"])
            with self.using(other):
                other_logits = self.head.logits(part["other"])
            return divergences.token_kls(
                logits, other_logits, self.head.temperature
            )

        tensors = {"hidden": hidden, "other": other_hidden}
        tensors["ids"] = inputs["completion_ids"]
        kls = self.head.map_tokens(token_kls, tensors)
        return likelihood.sequence_log_probs(kls, inputs["mask"])


def _repeated(inputs):
    """Arguments of `completion_hidden`: each prompt once per sample."""
    batch_size, num_samples, length = inputs["completion_ids"].shape

    def repeat(tensor):
        return sequences.repeat_rows(tensor, num_samples)

    rows = {
        "prompt_ids": repeat(inputs["prompt_ids"]),
        "prompt_lengths": repeat(inputs["prompt_lengths"]),
        "completion_ids": ops.reshape(inputs["completion_ids"], (-1, length)),
        "mask": ops.reshape(inputs["mask"], (-1, length)),
    }
    if "images" in inputs:
        images = inputs["images"].items()
        rows["images"] = {name: repeat(tensor) for name, tensor in images}
    return rows


def _in_parts(function, rows, num_parts, variables):
    if num_parts == 1:
        return function(rows)
    parts = parts_lib.split(rows, num_parts)
    return parts_lib.join(backend.map_parts(function, parts, variables))


def _flat(tensors):
    """Concatenates the tokens of tensors `(rows, length, ...)`."""
    return ops.concatenate(
        [ops.reshape(x, (-1, *x.shape[2:])) for x in tensors]
    )


@contextlib.contextmanager
def _in_parallel(backbone, rematerialize):
    """Returns a context for passes over many tokens, perhaps with gradients."""
    blocks = network.blocks(backbone) if rematerialize else []
    with layer_calls.flattened(backbone), layer_calls.rematerialized(blocks):
        yield


def completion_hidden(
    policy,
    prompt_ids,
    prompt_lengths,
    completion_ids,
    mask,
    rematerialize=False,
    images=None,
):
    """Computes the hidden states that predict each token of completions.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        prompt_ids: int32 tensor `(rows, prompt_length)`.
        prompt_lengths: int32 tensor `(rows,)`.
        completion_ids: int32 tensor `(rows, completion_length)`.
        mask: bool tensor `(rows, completion_length)`.
        rematerialize: bool. Whether the blocks of the network recompute their
            activations in the backward pass instead of keeping them.
        images: dict of tensors over `(rows, ...)`, see `Rollout.embed_images`,
            or `None`.

    Returns:
        float tensor `(rows, completion_length, width)`.
    """
    token_ids = sequences.join(prompt_ids, prompt_lengths, completion_ids)
    lengths = prompt_lengths + ops.sum(ops.cast(mask, "int32"), axis=1)
    positions = ops.arange(token_ids.shape[1], dtype="int32")
    inputs = {
        "token_ids": token_ids,
        "padding_mask": positions[None, :] < lengths[:, None],
        **(images or {}),
    }
    with _in_parallel(policy.backbone, rematerialize):
        hidden = network.hidden_states(policy.backbone, inputs)
    return sequences.completion_window(
        hidden, prompt_lengths, completion_ids.shape[1], shift=-1
    )


def completion_log_probs(
    policy, prompt_ids, prompt_lengths, completion_ids, mask, temperature
):
    """Computes `log π(y|x)` of given completions, one per row.

    Args:
        policy, prompt_ids, prompt_lengths, completion_ids, mask: see
            `completion_hidden`.
        temperature: float. Temperature of the sampler.

    Returns:
        float32 tensor `(rows,)`, in nats.
    """
    hidden = completion_hidden(
        policy, prompt_ids, prompt_lengths, completion_ids, mask
    )
    log_probs = Head(policy, temperature).token_log_probs(
        hidden, completion_ids, mask
    )
    return likelihood.sequence_log_probs(log_probs, mask)
