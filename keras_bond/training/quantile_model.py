"""A classifier that tells which quantile of the anchor a completion reaches."""

import keras
import numpy as np
from keras import ops

from keras_bond.arguments import check_count
from keras_bond.formulas import learned_quantiles
from keras_bond.rollouts import sequences
from keras_bond.training import checks


@keras.saving.register_keras_serializable(package="keras_bond")
class QuantileModel(keras.Model):
    """Learned quantiles: `p_θ(x, y) ≈ P[r(x, y') <= r(x, y)]`, `y' ~ anchor`.

    Equation 25 and appendix B.1 of BOND (Sessa et al., ICLR 2025, arXiv
    2407.14622): a binary classifier trained by cross-entropy. Beside `p_le` a
    second logit learns `p_lt`, with `<`, which ties of rewards need.

    `Bond(estimator="learned")` makes one on the policy's own backbone, without
    training that, and trains it beside the policy. For one of your own, fit it
    to `bond.quantile_examples(prompts)` and pass it as `Bond(estimator=model)`.

    Args:
        backbone: a KerasHub backbone of the policy's tokenizer.
        train_backbone: bool. Whether the backbone learns too. Defaults to
            True.
        seed: int, or `None`. Of the weights of the two layers on top.
        **kwargs: `name` and the like, for `keras.Model`.

    Call arguments:
        inputs: dict of `token_ids` int32 and `padding_mask` bool, both
            `(rows, length)`: prompt and completion, padded on the right.

    Returns of a call:
        float32 tensor `(rows, 2)`: logits of `p_le` and `p_lt`.

    Example:

    ```python
    inputs, labels = bond.quantile_examples(prompts, num_samples=16)
    quantiles = keras_bond.QuantileModel(small_backbone)
    quantiles.compile(keras.optimizers.Adam(1e-4))
    quantiles.fit(inputs, labels, batch_size=64, epochs=2)
    bond = keras_bond.Bond(policy, reward, estimator=quantiles, ...)
    ```
    """

    def __init__(self, backbone, train_backbone=True, seed=None, **kwargs):
        super().__init__(**kwargs)
        checks.check_backbone(backbone)
        width = backbone.output.shape[-1]
        self.backbone = backbone
        self.train_backbone = train_backbone
        self.seed = seed
        initializer = keras.initializers.GlorotUniform(seed)
        self.hidden = keras.layers.Dense(
            width,
            activation="gelu",
            kernel_initializer=initializer,
            dtype="float32",
            name="hidden",
        )
        # Zeros: every completion starts at the median.
        self.logits = keras.layers.Dense(
            2, kernel_initializer="zeros", dtype="float32", name="logits"
        )
        self.hidden.build((None, width))
        self.logits.build((None, width))
        self.batches_seen = self.add_weight(
            name="batches_seen",
            shape=(),
            dtype="int32",
            trainable=False,
            initializer="zeros",
        )
        self.built = True

    def call(self, inputs, training=False):
        hidden = self.backbone(inputs, training=training)
        last = sequences.at_last_token(hidden, inputs["padding_mask"])
        features = ops.cast(last, "float32")
        if not self.train_backbone:
            features = ops.stop_gradient(features)
        if training:
            self.batches_seen.assign_add(1)
        return self.logits(self.hidden(features))

    def compile(self, optimizer="adam", loss=None, **kwargs):
        """See `keras.Model.compile`; the loss is eq. 25's cross-entropy."""
        if loss is None:
            loss = keras.losses.BinaryCrossentropy(from_logits=True)
        super().compile(optimizer=optimizer, loss=loss, **kwargs)

    def get_config(self):
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "train_backbone": self.train_backbone,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        backbone = keras.saving.deserialize_keras_object(config["backbone"])
        return cls(**{**config, "backbone": backbone})


def get(estimator, policy, seed):
    """Turns what a user passes as `estimator=` into a layer.

    Args:
        estimator: `"learned"`, or a Keras layer.
        policy: a `keras_hub.models.CausalLM`.
        seed: int. Of the weights of a layer that is made here.

    Returns:
        the layer; frozen, unless it was made here.

    Raises:
        TypeError: if it is no Keras layer.
        ValueError: if it shares variables with the policy.
    """
    if isinstance(estimator, str):
        return QuantileModel(policy.backbone, train_backbone=False, seed=seed)
    if not isinstance(estimator, keras.Layer):
        raise TypeError(
            "`estimator` must be a string, or a Keras layer that maps token "
            "ids to logits of p_le and p_lt, such as "
            f"`keras_bond.QuantileModel`. Received: estimator={estimator!r} "
            f"of type {type(estimator).__name__}"
        )
    policy_ids = {id(variable) for variable in policy.variables}
    shared = [v.path for v in estimator.variables if id(v) in policy_ids]
    if shared:
        raise ValueError(
            "`estimator` must not share variables with the policy, because it "
            "is frozen: build it on a copy of the backbone, or pass "
            f'estimator="learned". Received: {len(shared)} shared variables, '
            f"the first of them {shared[0]!r}"
        )
    estimator.trainable = False
    return estimator


def check_trained(quantiles):
    """Raises an error if a `QuantileModel` was never fitted.

    Raises:
        ValueError: naming the ways out.
    """
    if isinstance(quantiles, QuantileModel) and not int(quantiles.batches_seen):
        raise ValueError(
            "A quantile model must be trained before it is used: call "
            "`model.fit(*bond.quantile_examples(prompts))`, or pass "
            'estimator="learned" to train one beside the policy. Received: a '
            "QuantileModel that has seen 0 batches"
        )


def quantile_logits(model, inputs, stop_token_ids):
    """Quantile logits of the completions of a batch.

    Args:
        model: a Keras layer, see `QuantileModel`.
        inputs: dict of tensors, see `keras_bond.Bond`.
        stop_token_ids: tuple of int.

    Returns:
        float32 tensor `(batch, samples, 2)`.
    """
    collated = sequences.collate(
        inputs["prompt_ids"],
        inputs["prompt_lengths"],
        inputs["completion_ids"],
        stop_token_ids,
    )
    batch_size, num_samples, length = collated["token_ids"].shape
    rows = {
        name: ops.reshape(collated[name], (-1, length))
        for name in ("token_ids", "padding_mask")
    }
    logits = model(rows, training=False)
    return ops.reshape(logits, (batch_size, num_samples, 2))


def draw_examples(bond, prompts, num_samples, batch_size):
    """Draws and scores anchor samples; see `Bond.quantile_examples`."""
    check_count("num_samples", num_samples, 2)
    samples, rewards = bond.draw_scored(
        prompts, num_samples, batch_size, "anchor"
    )
    scored = np.isfinite(rewards).all(axis=1)
    labels = learned_quantiles.quantile_labels(
        ops.convert_to_tensor(rewards[scored]), num_policy_samples=0
    )
    kept = np.repeat(scored, num_samples)
    inputs = {
        "token_ids": samples.token_ids[kept],
        "padding_mask": samples.padding_mask[kept],
    }
    return inputs, ops.convert_to_numpy(labels).reshape(-1, 2)
