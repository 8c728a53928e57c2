"""Reward model trained on preference pairs."""

import os

import keras
from keras import ops

from keras_bond.arguments import check_count
from keras_bond.callbacks.checks import as_list
from keras_bond.data import lengths
from keras_bond.data import preferences
from keras_bond.data import sources
from keras_bond.data import tokenizer as tokenizer_lib
from keras_bond.formulas import bradley_terry
from keras_bond.formulas import sequences
from keras_bond.rollouts import network
from keras_bond.training import checks
from keras_bond.training import round_trip
from keras_bond.training import saving
from keras_bond.training import standardize
from keras_bond.training.learning_rates import warn_learning_rate
from keras_bond.training.whole_files import WholeFiles
from keras_bond.turns import check_several


@keras.saving.register_keras_serializable(package="keras_bond")
class RewardModel(WholeFiles, saving.CompileConfig, keras.Model):
    """Reward model trained on preference pairs.

    It has a scalar head on the last hidden state of a language model, and is
    trained with the Bradley-Terry model (Bradley & Terry, 1952), with margins
    as in Touvron et al. (2023, arXiv 2307.09288) and centered rewards as in
    Eisenstein et al. (2023, arXiv 2312.09244):

        loss = -log σ(r_c - r_r - margin) + coefficient · (r_c + r_r)²

    `fit` and `evaluate` take preference pairs as `x`. After training, pass the
    model as a reward, `JBond(policy, reward_model, ...)`. If both have the same
    tokenizer, it scores the policy's token ids on the device; otherwise it
    tokenizes the text again with its own tokenizer.

    Args:
        backbone: a KerasHub backbone, or a `keras_hub.models.CausalLM` whose
            backbone and preprocessor are used. Do not pass the policy's own
            backbone, which changes in training: load the preset once more. To
            train LoRA adapters only, call `backbone.enable_lora(rank)` BEFORE.
        preprocessor: a KerasHub preprocessor or tokenizer. Defaults to that of
            the `CausalLM`; without one, pairs must be given as token ids.
        max_length: int. Maximum number of tokens in prompt and completion
            together, including start and end token. Defaults to 1024.
        truncate: `None` to raise an error for rows that are too long, or
            `"left"` to keep their start token and their end. Defaults to
            `None`.
        center_rewards_coefficient: float, at least 0. Weight of the term that
            keeps rewards near 0; 0.01 is a common value. Defaults to 0.
        chat_template: how conversations are written, see
            `keras_bond.data.render_chat`. Defaults to `"auto"`.
        **kwargs: arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: dict of `token_ids` int32 and `padding_mask` bool, both
            `(..., length)`, padded on the right. In training the axes are
            `(batch, 2, length)`, chosen and rejected.

    Returns of a call:
        float32 tensor `(...)`: the rewards.

    `fit` and `evaluate` log `loss`; `accuracy`, how often the chosen completion
    scores above the rejected one, where ties count one half; `margin`, the mean
    difference of the two; and `mean_reward`, the mean of both.

    Example:

    ```python
    model = keras_hub.models.Gemma3CausalLM.from_preset("gemma3_1b")
    reward_model = keras_bond.RewardModel(model, max_length=512)
    reward_model.compile(keras.optimizers.Adam(1e-5))
    reward_model.fit(
        [{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}, ...],
        batch_size=32,
    )
    reward_model.predict(["3 + 3 ="], [" 6"])  # one float
    bond = keras_bond.JBond(policy, reward_model, ...)
    ```
    """

    def __init__(
        self,
        backbone,
        preprocessor=None,
        max_length=1024,
        truncate=None,
        center_rewards_coefficient=0.0,
        chat_template="auto",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_count("max_length", max_length, 2)
        checks.check_one_of("truncate", truncate, (None, "left"))
        checks.check_strength(
            "center_rewards_coefficient", center_rewards_coefficient
        )
        if hasattr(backbone, "backbone"):
            if preprocessor is None:
                preprocessor = backbone.preprocessor
            backbone = backbone.backbone
        checks.check_backbone(backbone)
        network.freeze_encoders(backbone)
        self.backbone = backbone
        self.preprocessor = preprocessor
        self._tokenizer, self.chat_template = standardize.tokenizer_of(
            preprocessor, chat_template, backbone
        )
        self.max_length = max_length
        self.truncate = truncate
        self.center_rewards_coefficient = float(center_rewards_coefficient)
        # With zeros, all completions start with the same reward.
        self.head = keras.layers.Dense(
            1, kernel_initializer="zeros", dtype="float32", name="reward_head"
        )
        self.head.build((None, backbone.output.shape[-1]))
        self.batches_seen = self.add_weight(
            name="batches_seen",
            shape=(),
            dtype="int32",
            trainable=False,
            initializer="zeros",
        )
        self._accuracy = keras.metrics.Mean(name="accuracy")
        self._margin = keras.metrics.Mean(name="margin")
        self._mean_reward = keras.metrics.Mean(name="mean_reward")
        self._adapters = saving.LoraAdapters(self.backbone)
        self.built = True

    def call(self, inputs, training=False):
        self.check_weights()
        shape = ops.shape(inputs["token_ids"])
        rows = {
            name: ops.reshape(inputs[name], (-1, shape[-1]))
            for name in ("token_ids", "padding_mask")
        }
        hidden = network.hidden_states(self.backbone, rows, training)
        last = sequences.at_last_token(hidden, rows["padding_mask"])
        if training:
            self.batches_seen.assign_add(1)
        rewards = self.head(ops.cast(last, "float32"))
        return ops.reshape(rewards, shape[:-1])

    def compile(self, optimizer="adam", **kwargs):
        """See `keras.Model.compile`. Loss and metrics are built in.

        Raises:
            ValueError: if the optimizer cannot update the model's variables,
                as Adam cannot update bfloat16, or if a loss is given.
        """
        for name in ("loss", "metrics", "weighted_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"`{name}` must be left out: a reward model has its own. "
                    f"Received: {name}={kwargs[name]!r}"
                )
        optimizer = keras.optimizers.get(optimizer)
        checks.check_optimizer(optimizer, self.trainable_variables)
        warn_learning_rate(optimizer, self, 1e-5, "a pretrained backbone")
        super().compile(optimizer=optimizer, **kwargs)
        self._compile_arguments = kwargs

    def compile_from_config(self, config):
        super().compile_from_config(config)
        self.optimizer.build(self.trainable_variables)

    def compute_loss(
        self,
        x=None,
        y=None,
        y_pred=None,
        sample_weight=None,
        training=True,
    ):
        """Computes the mean loss of a batch of pairs, with margins as `y`."""
        losses = bradley_terry.preference_loss(
            y_pred[:, 0],
            y_pred[:, 1],
            0.0 if y is None else y,
            self.center_rewards_coefficient,
        )
        if sample_weight is not None:
            losses *= ops.cast(sample_weight, losses.dtype)
        loss = ops.mean(losses)
        for regularizer in self.losses:
            loss += ops.sum(ops.cast(regularizer, loss.dtype))
        return loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates accuracy, margin and mean reward of the pairs."""
        difference = y_pred[:, 0] - y_pred[:, 1]
        wins = 0.5 * (1.0 + ops.sign(difference))
        self._accuracy.update_state(wins, sample_weight)
        self._margin.update_state(difference, sample_weight)
        self._mean_reward.update_state(ops.mean(y_pred, axis=1), sample_weight)
        return self.get_metrics_result()

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        **kwargs,
    ):
        """Trains on preference pairs, see `keras.Model.fit`.

        Args:
            x: preference pairs in TRL's format: a list of dicts, dict of
                columns, Hugging Face dataset or path of a `.jsonl` file, with
                `"chosen"`, `"rejected"`, and optionally `"prompt"` or
                `"prompts"`, and `"margin"`, by how much the reward of chosen
                should exceed that of rejected. Texts are strings or
                conversations; without prompts they are whole texts. Anything
                else is passed on to `keras.Model.fit`, such as
                batches of what `encode_pairs` returns.
            y: margins `(pairs,)` of pairs that are already tokenized.
            batch_size, epochs, verbose, callbacks: see `keras.Model.fit`.
            validation_split, kwargs: see `keras.Model.fit`.
            validation_data: preference pairs, as `x`.

        Returns:
            a `keras.callbacks.History`.

        Raises:
            TypeError, ValueError: if the pairs do not have this format.
        """
        checks.check_compiled(self)
        callbacks = as_list(callbacks)
        x, y = self._standardize(x, y)
        if validation_data is not None and not isinstance(
            validation_data, tuple
        ):
            validation_data = self._standardize(validation_data, None)
            if validation_data[1] is None:
                validation_data = validation_data[0]
        return super().fit(
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_split=validation_split,
            validation_data=validation_data,
            **kwargs,
        )

    def evaluate(self, x=None, y=None, batch_size=None, **kwargs):
        """Computes loss and metrics on preference pairs.

        See `keras.Model.evaluate`.

        Args:
            x, y: as in `fit`.
            batch_size, kwargs: see `keras.Model.evaluate`.
        """
        checks.check_compiled(self)
        x, y = self._standardize(x, y)
        return super().evaluate(x, y, batch_size=batch_size, **kwargs)

    def predict(
        self, x, completions=None, batch_size=None, verbose=0, **kwargs
    ):
        """Computes rewards of completions.

        Args:
            x: list of str or conversations, the prompts. Without
                `completions`: whole texts or conversations, or a dict of
                `token_ids` and `padding_mask`.
            completions: list of str, one for each prompt.
            batch_size, verbose, kwargs: see `keras.Model.predict`.

        Returns:
            float32 array, one number for each completion.
        """
        check_several(x)
        if completions is None and isinstance(x, (list, tuple)):
            x, completions = [""] * len(x), x
        if completions is not None:
            if len(x) != len(completions):
                raise ValueError(
                    "`completions` must have one entry per prompt. Received: "
                    f"{len(completions)} completions of {len(x)} prompts"
                )
            rows = self._encoder()(list(x), list(completions))
            x = lengths.pad(rows)
        elif isinstance(x, dict):
            self._check_ids(x)
        return super().predict(
            x, batch_size=batch_size, verbose=verbose, **kwargs
        )

    def encode_pairs(self, pairs):
        """Tokenizes preference pairs.

        Args:
            pairs: see `fit`.

        Returns:
            `(x, y)` for `fit`: a dict of `token_ids` and `padding_mask`, both
            `(pairs, 2, length)` with the length of the longest row, and margins
            float32 `(pairs,)`.
        """
        return preferences.encode_pairs(
            preferences.to_pairs(pairs), self._encoder()
        )

    def reward_inputs(self, samples):
        """Returns the model inputs that score a policy's completions.

        Args:
            samples: a `keras_bond.rewards.Samples`.

        Returns:
            dict of `token_ids` and `padding_mask`, `(rows, length)`.

        Raises:
            ValueError: if the model was never fitted, or a text is too long.
        """
        if not int(ops.convert_to_numpy(self.batches_seen)):
            raise ValueError(
                "A reward model must be trained before it scores: call `fit` "
                "or `load_weights`. After loading a trainer from a file, set "
                "it again: `bond.reward = keras.saving.load_model(...)`. "
                "Received: a RewardModel that has seen 0 batches"
            )
        if self._reads(samples):
            inputs = {
                "token_ids": samples.token_ids,
                "padding_mask": samples.padding_mask,
            }
            self._check_ids(inputs)
            return inputs
        prompts = samples.conversations or samples.prompts
        rows = self._encoder()(prompts, samples.completions, samples.terminated)
        # Powers of 2 keep the number of compiled lengths small.
        longest = max(len(row) for row in rows)
        length = min(self.max_length, 1 << (longest - 1).bit_length())
        return lengths.pad(rows, length)

    def _check_ids(self, inputs):
        """Raises an error if token ids are outside of the vocabulary."""
        size = network.vocabulary_size(self.backbone)
        ids, mask = (
            ops.convert_to_numpy(inputs[name])
            for name in ("token_ids", "padding_mask")
        )
        for i, (row, kept) in enumerate(zip(ids, mask)):
            lengths.check_ids(row[kept.astype(bool)], size, f"row {i}")

    def _reads(self, samples):
        """Whether the policy's token ids are what this model would read."""
        if samples.tokenizer is None or self.preprocessor is None:
            return True
        own = getattr(self.preprocessor, "tokenizer", self.preprocessor)
        if not tokenizer_lib.same_tokens(own, samples.tokenizer):
            return False
        if samples.conversations is None:
            return True
        # Another chat template writes other tokens; one sample of a prompt
        # tells.
        one = slice(None, None, samples.num_samples)
        pairs = zip(samples.conversations[one], samples.prompts[one])
        return all(
            self._tokenizer.render(turns) == text for turns, text in pairs
        )

    def _encoder(self):
        if self.preprocessor is None:
            raise ValueError(
                "`preprocessor` must be given to read text: build the model "
                "with `preprocessor=` a KerasHub preprocessor or tokenizer, or "
                "pass token ids. Received: preprocessor=None"
            )
        size = network.vocabulary_size(self.backbone)
        return preferences.CompletionEncoder(
            self._tokenizer, self.max_length, size, self.truncate
        )

    def _standardize(self, x, y):
        if isinstance(x, dict) and "token_ids" in x:
            self._check_ids(x)
            return x, y
        readable = isinstance(x, (list, dict, str, os.PathLike))
        if not (readable or hasattr(x, "column_names") or sources.is_frame(x)):
            return x, y
        if y is not None:
            raise ValueError(
                "Preference pairs have no targets: pass margins as a column "
                f'"margin". Received: y of type {type(y).__name__}'
            )
        return self.encode_pairs(x)

    def network_with_adapters(self):
        return self.backbone

    def get_config(self):
        return {
            "backbone": round_trip.serialize(self.backbone),
            **saving.serialize_lora(self.backbone),
            "preprocessor": round_trip.serialize(self.preprocessor),
            "max_length": self.max_length,
            "truncate": self.truncate,
            "center_rewards_coefficient": self.center_rewards_coefficient,
            "chat_template": saving.serialize_template(self.chat_template),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        deserialize = keras.saving.deserialize_keras_object
        backbone = deserialize(config.pop("backbone"))
        preprocessor = deserialize(config.pop("preprocessor"))
        saving.enable_lora(backbone, config)
        config["chat_template"] = deserialize(config["chat_template"])
        model = cls(backbone, preprocessor, **config)
        model.lacks_weights = True
        return model
