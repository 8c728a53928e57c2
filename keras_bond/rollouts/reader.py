"""Log-probabilities and exact KLs of given completions, in one forward pass."""

from keras import ops

from keras_bond.backend import layer_calls
from keras_bond.formulas import divergences
from keras_bond.formulas import likelihood
from keras_bond.formulas import masks
from keras_bond.formulas import sequences
from keras_bond.rollouts import network
from keras_bond.rollouts.network import Head


class Reader:
    """Computes log-probabilities and KLs of given completions.

    All tokens are processed in parallel.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        head: the `keras_bond.rollouts.Head` of the policy.
        using: callable that takes the name of a weight set and returns a
            context in which the policy runs with it.
    """

    def __init__(self, policy, head, using):
        self.policy = policy
        self.head = head
        self.using = using

    def hidden(self, inputs, rematerialize=False):
        """Computes the hidden states that predict each completion token.

        Args:
            inputs: dict of tensors: `prompt_ids` int32 `(batch,
                prompt_length)`, `prompt_lengths` int32 `(batch,)`,
                `completion_ids` int32 and `mask` bool `(batch, samples,
                completion_length)`; maybe `images`, see
                `Rollout.embed_images`.
            rematerialize: bool. See `completion_hidden`.

        Returns:
            float tensor `(batch, samples, completion_length, width)`.
        """
        batch_size, num_samples, length = inputs["completion_ids"].shape
        images = {
            name: sequences.repeat_rows(tensor, num_samples)
            for name, tensor in inputs.get("images", {}).items()
        }
        hidden = completion_hidden(
            self.policy,
            sequences.repeat_rows(inputs["prompt_ids"], num_samples),
            sequences.repeat_rows(inputs["prompt_lengths"], num_samples),
            ops.reshape(inputs["completion_ids"], (-1, length)),
            ops.reshape(inputs["mask"], (-1, length)),
            rematerialize,
            images,
        )
        return ops.reshape(hidden, (batch_size, num_samples, length, -1))

    def log_probs(self, inputs, hidden):
        """Computes `log π(y|x)` of the completions with the current head.

        Args:
            inputs: see `hidden`.
            hidden: what `hidden` returned.

        Returns:
            float32 tensor `(batch, samples)`, in nats.
        """
        log_probs = self.head.token_log_probs(hidden, inputs["completion_ids"])
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
    backbone = policy.backbone
    blocks = network.blocks(backbone) if rematerialize else []
    with layer_calls.flattened(backbone), layer_calls.rematerialized(blocks):
        hidden = network.hidden_states(backbone, inputs)
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
        hidden, completion_ids
    )
    return likelihood.sequence_log_probs(log_probs, mask)
