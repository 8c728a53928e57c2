"""A check that the policy that is learned from is the one that was sampled."""

import math
import warnings

import keras

from keras_bond.rollouts import supported

NAME = "sampling/log_prob_difference"
# Nats per token that rounding explains: differences of logits add up over the
# layers. Accelerators multiply float32 matrices in fewer bits than float32 has.
EXPLAINED = {"float32": 0.01, "float16": 0.02}
EXPLAINED_OTHERWISE = 0.05
# Quantized layers round what they are given, by the scale of all of it: int8
# layers of a network of 135M weights differ by 0.16 without a fault.
EXPLAINED_IF_QUANTIZED = 0.4
REFUSED = 0.1


class SamplingCheck(keras.callbacks.Callback):
    """Compares two log-probabilities of the same completions.

    The decoder computes `log π(y|x)` token by token with a cache; the loss
    computes it in one parallel pass. If the two disagree, completions are drawn
    from one distribution and another one is trained, which no other number
    shows. TRL logs the same difference to the engine that samples for it.

    Args:
        policy: `keras_hub.models.CausalLM`.

    Raises:
        ValueError: after the first step, or an epoch, if a float32 network
            differs by more than rounding can explain. A step that does has
            updated nothing, see `AnchoredTrainer.is_good`.
    """

    def __init__(self, policy):
        super().__init__()
        self.dtype = policy.backbone.dtype_policy.name
        self.explained, self.refused = limits_of(policy)
        self._is_checked = False

    def on_train_batch_end(self, batch, logs=None):
        if not self._is_checked:
            self._check(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._check(logs)

    on_test_batch_end = on_train_batch_end

    def on_test_end(self, logs=None):
        self._check(logs)

    def _check(self, logs):
        difference = float((logs or {}).get(NAME, math.nan))
        if math.isnan(difference):
            return
        received = (
            f"Received: {difference:.2g} nats per token, a policy of dtype "
            f"{self.dtype!r}"
        )
        if difference > self.refused:
            raise ValueError(
                "The policy must give a completion the same log-probability "
                "while it is drawn with a cache and while it is learned from: "
                "the network's cache is at fault, so use another preset or "
                f"another version of KerasHub. {received}"
            )
        if difference > self.explained and not self._is_checked:
            warnings.warn(
                "The log-probabilities of completions differ by more than "
                f"rounding explains ({self.explained} nats per token) between "
                "drawing them and learning from them, which biases `kl` and "
                f"the loss: use a higher precision. {received}",
                stacklevel=2,
            )
        self._is_checked = True


def limits_of(policy):
    """Nats per token that rounding explains, and those that are refused.

    Args:
        policy: `keras_hub.models.CausalLM`.

    Returns:
        `(explained, refused)`: two floats, the second one infinite for
        networks that compute in less than float32.
    """
    if supported.is_quantized(policy):
        return EXPLAINED_IF_QUANTIZED, math.inf
    dtype = policy.backbone.dtype_policy.name
    refused = REFUSED if dtype == "float32" else math.inf
    return EXPLAINED.get(dtype, EXPLAINED_OTHERWISE), refused
