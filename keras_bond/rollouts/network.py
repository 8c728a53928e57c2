"""What a rollout asks of a KerasHub language model."""

import inspect

import keras
from keras import ops

from keras_bond import formulas
from keras_bond.rollouts import sequences


def completion_logits(policy, prompt_ids, prompt_lengths, completion_ids, mask):
    """Logits that predict each token of given completions, in one pass.

    The vocabulary is reached for the completion's positions only.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        prompt_ids: int32 tensor `(rows, prompt_length)`.
        prompt_lengths: int32 tensor `(rows,)`.
        completion_ids: int32 tensor `(rows, completion_length)`.
        mask: bool tensor `(rows, completion_length)`.

    Returns:
        float tensor `(rows, completion_length, vocabulary)`.
    """
    token_ids = sequences.join(prompt_ids, prompt_lengths, completion_ids)
    lengths = prompt_lengths + ops.sum(ops.cast(mask, "int32"), axis=1)
    positions = ops.arange(token_ids.shape[1], dtype="int32")
    inputs = {
        "token_ids": token_ids,
        "padding_mask": positions[None, :] < lengths[:, None],
    }
    hidden = policy.backbone(inputs, training=False)
    hidden = sequences.completion_window(
        hidden, prompt_lengths, completion_ids.shape[1], shift=-1
    )
    return policy.backbone.token_embedding(hidden, reverse=True)


def completion_log_probs(
    policy, prompt_ids, prompt_lengths, completion_ids, mask, temperature
):
    """`log π(y|x)` of given completions, in one parallel pass.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        prompt_ids: int32 tensor `(rows, prompt_length)`.
        prompt_lengths: int32 tensor `(rows,)`.
        completion_ids: int32 tensor `(rows, completion_length)`.
        mask: bool tensor `(rows, completion_length)`.
        temperature: float, that of the sampler.

    Returns:
        float32 tensor `(rows,)`, in nats.
    """
    logits = completion_logits(
        policy, prompt_ids, prompt_lengths, completion_ids, mask
    )
    token_log_probs = formulas.token_log_probs(
        logits, completion_ids, temperature
    )
    return formulas.sequence_log_probs(token_log_probs, mask)


class CacheBuilder(keras.Operation):
    """Makes empty key-value caches of the shape that a policy wants.

    KerasHub's decoders share `call_with_cache`, but each lays its cache out in
    its own way. The layout is asked for once, without computing anything.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        length: int. Tokens that the cache must hold, prompt and completion.

    Raises:
        ValueError: if the first axis of a cache is not the batch.
    """

    def __init__(self, policy, length):
        super().__init__()
        self.policy = policy
        token_ids = keras.KerasTensor((1, length), dtype="int32")
        self.spec = self.compute_output_spec(token_ids)
        for leaf in keras.tree.flatten(self.spec):
            if leaf.shape[0] != 1:
                raise ValueError(
                    "The key-value cache of `policy` must have the batch as "
                    "its first axis, as KerasHub's decoders do. Received: a "
                    f"cache of shape {leaf.shape} for a batch of 1"
                )

    def call(self, token_ids):
        build = self.policy._build_cache
        num_extras = len(inspect.signature(build).parameters) - 1
        return build(token_ids, *[None] * num_extras)[1]

    def empty(self, batch_size):
        """Returns a cache of zeros for `batch_size` rows."""
        return keras.tree.map_structure(
            lambda leaf: ops.zeros((batch_size, *leaf.shape[1:]), leaf.dtype),
            self.spec,
        )
