"""What a rollout asks of a KerasHub language model."""

from keras import ops

from keras_bond import formulas
from keras_bond.rollouts import layers
from keras_bond.rollouts import sequences
from keras_bond.rollouts.head import Head


def completion_hidden(
    policy,
    prompt_ids,
    prompt_lengths,
    completion_ids,
    mask,
    rematerialize=False,
):
    """Hidden states that predict each token of given completions.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        prompt_ids: int32 tensor `(rows, prompt_length)`.
        prompt_lengths: int32 tensor `(rows,)`.
        completion_ids: int32 tensor `(rows, completion_length)`.
        mask: bool tensor `(rows, completion_length)`.
        rematerialize: bool. Whether the blocks of the network compute their
            activations again for the gradient, instead of keeping them.

    Returns:
        float tensor `(rows, completion_length, width)`.
    """
    token_ids = sequences.join(prompt_ids, prompt_lengths, completion_ids)
    lengths = prompt_lengths + ops.sum(ops.cast(mask, "int32"), axis=1)
    positions = ops.arange(token_ids.shape[1], dtype="int32")
    inputs = {
        "token_ids": token_ids,
        "padding_mask": positions[None, :] < lengths[:, None],
    }
    blocks = policy.backbone.transformer_layers if rematerialize else []
    with layers.flattened(policy), layers.rematerialized(blocks):
        hidden = policy.backbone(inputs, training=False)
    return sequences.completion_window(
        hidden, prompt_lengths, completion_ids.shape[1], shift=-1
    )


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
    hidden = completion_hidden(
        policy, prompt_ids, prompt_lengths, completion_ids, mask
    )
    log_probs = Head(policy, temperature).token_log_probs(
        hidden, completion_ids
    )
    return formulas.sequence_log_probs(log_probs, mask)
