"""The output layer of a language model, where memory goes.

An array of `(batch, length, vocabulary)` is larger than all else of a training
step: Gemma 3 has 262,144 tokens. So the head is applied to some tokens at a
time, and what it gave is forgotten and computed again for the gradient.
"""

import math

from keras import ops
from keras import tree

from keras_bond import backend
from keras_bond.formulas import likelihood

# Entries of the logits that are held at once: 64 MiB in float32.
MOST_LOGITS = 2**24


class Head:
    """From hidden states to what is asked about next-token distributions.

    Args:
        policy: a `keras_hub.models.CausalLM`.
        temperature: float, that of the sampler. Defaults to 1.
    """

    def __init__(self, policy, temperature=1.0):
        self.embedding = policy.backbone.token_embedding
        self.temperature = temperature

    def logits(self, hidden):
        """Logits `(..., vocabulary)` of hidden states `(..., width)`."""
        return self.embedding(hidden, reverse=True)

    def token_log_probs(self, hidden, token_ids):
        """Log-probability of each token, see `likelihood.token_log_probs`.

        Args:
            hidden: float tensor `(..., width)`: those that predict the tokens.
            token_ids: int32 tensor `(...)`.

        Returns:
            float32 tensor `(...)`, in nats.
        """

        def log_probs(part):
            return likelihood.token_log_probs(
                self.logits(part["hidden"]), part["ids"], self.temperature
            )

        return self.map_tokens(log_probs, {"hidden": hidden, "ids": token_ids})

    def map_tokens(self, function, tensors):
        """Applies a function of single tokens to some of them at a time.

        Args:
            function: callable that takes `tensors` with one axis of tokens in
                place of the leading ones, and returns a tensor `(tokens,)`.
            tensors: dict of tensors with the leading axes of `"ids"`.

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
        parts = tree.map_structure(lambda x: _into_parts(x, num_parts), flat)
        mapped = backend.map_parts(function, parts, self.embedding.variables)
        return ops.reshape(ops.reshape(mapped, (-1,))[:num_tokens], leading)

    def tokens_at_once(self):
        """How many tokens' logits are held at once.

        Where the embedding is trained, its gradient, which is added up over
        the parts, is of the size of `width` tokens' logits anyway.
        """
        vocabulary, width = self.embedding.input_dim, self.embedding.output_dim
        tokens = max(1, MOST_LOGITS // vocabulary)
        return (
            max(tokens, width) if self.embedding.trainable_variables else tokens
        )


def _into_parts(tensor, num_parts):
    """`(tokens, ...)` as `(parts, tokens a part, ...)`, padded with zeros."""
    num_tokens = tensor.shape[0]
    size = -(-num_tokens // num_parts)
    padding = [(0, 0)] * len(tensor.shape)
    padding[0] = (0, num_parts * size - num_tokens)
    padded = ops.pad(tensor, padding) if padding[0][1] else tensor
    return ops.reshape(padded, (num_parts, size, *tensor.shape[1:]))
