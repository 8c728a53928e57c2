"""Learned quantiles of rewards under the anchor."""

import keras
import numpy as np
from keras import ops

from keras_bond.arguments import check_count
from keras_bond.formulas import learned_quantiles
from keras_bond.formulas import sequences
from keras_bond.rewards.samples import IMAGES
from keras_bond.rollouts import network
from keras_bond.training import checks
from keras_bond.training import round_trip
from keras_bond.training.whole_files import WholeFiles


@keras.saving.register_keras_serializable(package="keras_bond")
class QuantileModel(WholeFiles, keras.Model):
    """Learned quantiles: `p_θ(x, y) ≈ P[r(x, y') <= r(x, y)]`, `y' ~ anchor`.

    This is a binary classifier trained with cross-entropy, see equation 25 and
    appendix B.1 of BOND (Sessa et al., ICLR 2025, arXiv 2407.14622). A second
    logit learns `p_lt`, the same probability with `<`, which is needed if
    rewards tie.

    `Bond(estimator="learned")` builds one on the policy's own backbone, which
    it does not change, and trains it along with the policy. To use your own,
    fit it to `bond.quantile_examples(prompts)` and pass it as
    `Bond(estimator=model)`.

    Args:
        backbone: a KerasHub backbone with the policy's tokenizer.
        train_backbone: bool. Whether to train the backbone too. Defaults to
            `True`.
        seed: int, or `None`. Seed of the initial weights of the two layers on
            top.
        **kwargs: arguments of `keras.Model`, such as `name`.

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
        network.freeze_encoders(backbone)
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
        # With zeros, every completion starts at the median, p = 1/2.
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
        self.check_weights()
        rows = {name: inputs[name] for name in network.TEXT_INPUTS}
        hidden = network.hidden_states(self.backbone, rows, training)
        last = sequences.at_last_token(hidden, inputs["padding_mask"])
        features = ops.cast(last, "float32")
        if not self.train_backbone:
            features = ops.stop_gradient(features)
        if training:
            self.batches_seen.assign_add(1)
        return self.logits(self.hidden(features))

    def compile(self, optimizer="adam", loss=None, **kwargs):
        """See `keras.Model.compile`. The default loss is that of eq. 25."""
        if loss is None:
            loss = keras.losses.BinaryCrossentropy(from_logits=True)
        super().compile(optimizer=optimizer, loss=loss, **kwargs)

    def compile_from_config(self, config):
        """Compiles a loaded model, unless it is frozen and learns no more."""
        if not self.trainable:
            return
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def get_config(self):
        return {
            "backbone": round_trip.serialize(self.backbone),
            "train_backbone": self.train_backbone,
            "seed": self.seed,
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        is_trainable = config.pop("trainable")
        backbone = keras.saving.deserialize_keras_object(config["backbone"])
        model = cls(**{**config, "backbone": backbone})
        if not is_trainable:
            model.trainable = False
        model.lacks_weights = True
        return model


def get(estimator, policy, seed):
    """Returns the quantile model for an `estimator=` argument.

    Args:
        estimator: `"learned"`, or a Keras layer.
        policy: a `keras_hub.models.CausalLM`.
        seed: int. Seed of the initial weights of a new layer.

    Returns:
        the layer: new for `"learned"`, else the given one, frozen.

    Raises:
        TypeError: if `estimator` is not a Keras layer.
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
    network.freeze(estimator)
    return estimator


def check_trained(quantiles):
    """Raises an error if a `QuantileModel` was never fitted.

    Raises:
        ValueError: explaining how to train one.
    """
    if isinstance(quantiles, QuantileModel) and not int(quantiles.batches_seen):
        raise ValueError(
            "A quantile model must be trained before it is used: call "
            "`model.fit(*bond.quantile_examples(prompts))`, or pass "
            'estimator="learned" to train one with the policy. Received: a '
            "QuantileModel that has seen 0 batches"
        )


def quantile_logits(model, inputs, stop_token_ids):
    """Computes the quantile logits of the completions of a batch.

    Raises:
        ValueError: if the prompts have images.

    Args:
        model: a Keras layer, see `QuantileModel`.
        inputs: dict of tensors, see `keras_bond.Bond`.
        stop_token_ids: tuple of int.

    Returns:
        float32 tensor `(batch, samples, 2)`.
    """
    _check_text_only(IMAGES in inputs)
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


def _check_text_only(has_images):
    if has_images:
        raise ValueError(
            "A quantile model reads text, without the images of the prompts: "
            'use another estimator, such as estimator="control_variate". '
            f"Received: prompts with a column `{IMAGES}`"
        )


def draw_examples(bond, prompts, num_samples, batch_size):
    """Draws and scores anchor samples; see `Bond.quantile_examples`."""
    check_count("num_samples", num_samples, 2)
    samples, rewards = bond.draw_scored(
        prompts, num_samples, batch_size, "anchor"
    )
    _check_text_only(IMAGES in samples.columns)
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
