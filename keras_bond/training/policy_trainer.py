"""Base class of the trainers: a Keras model whose training data are prompts."""

import functools
import math

import keras
from keras import ops

from keras_bond import backend
from keras_bond import rewards as rewards_lib
from keras_bond import rollouts
from keras_bond.arguments import check_count
from keras_bond.callbacks.checks import as_list
from keras_bond.callbacks.interface import TrainerInterface
from keras_bond.callbacks.progress_bar import with_progress_bar
from keras_bond.data import images
from keras_bond.data import prompts
from keras_bond.rollouts import network
from keras_bond.training import checks
from keras_bond.training import placement
from keras_bond.training import progress
from keras_bond.training import saving
from keras_bond.training import standardize
from keras_bond.training.completing import Completing
from keras_bond.training.fit_checks import FitChecks
from keras_bond.training.interpolating import Interpolating
from keras_bond.training.learning_rates import warn_learning_rate
from keras_bond.training.nothing_learned import NothingLearned
from keras_bond.training.sampling_check import SamplingCheck
from keras_bond.training.unscored import Unscored
from keras_bond.training.weight_sets import WeightSets


class PolicyTrainer(
    Completing,
    FitChecks,
    Interpolating,
    saving.Saving,
    saving.CompileConfig,
    TrainerInterface,
    backend.StagedTrainer,
    keras.Model,
):
    """Holds a policy, its tokenizer, its reward and its position in the data.

    The mixins add what a trainer does besides training: `Completing` draws
    completions on request, `FitChecks` looks at what `fit` is given,
    `Interpolating` moves the policy between initial and trained weights, and
    `Saving` writes and loads the whole trainer. The training step itself is
    defined in `AnchoredTrainer`.

    The arguments are those of `keras_bond.JBond`.
    """

    # Values before `compile` is called, which sets them.
    rollout_batch_size = None
    gradient_accumulation_steps = 1
    rematerialize = False
    max_skipped_steps = 10

    def __init__(
        self,
        policy,
        reward,
        *,
        max_prompt_length,
        max_completion_length,
        reward_weights=None,
        reference="auto",
        prompt_buckets=None,
        truncate=None,
        stop_token_ids="auto",
        chat_template="auto",
        temperature=1.0,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.check_policy(policy)
        network.freeze_encoders(policy.backbone)
        placement.check_placement(policy)
        checks.check_lengths(policy, max_prompt_length, max_completion_length)
        checks.check_temperature(temperature)
        checks.check_one_of("truncate", truncate, (None, "left"))
        checks.check_one_of("reference", reference, ("auto", True, False))
        self.policy = policy
        self.max_prompt_length = max_prompt_length
        self.max_completion_length = max_completion_length
        self.prompt_buckets = standardize.prompt_buckets_of(
            prompt_buckets, max_prompt_length
        )
        self.truncate = truncate
        self.temperature = float(temperature)
        self.seed = standardize.seed_of(seed)
        self._set_up_text(stop_token_ids, chat_template)
        self._set_reward(reward, reward_weights)
        self.weight_sets = WeightSets(
            policy, standardize.has_reference(reference, policy)
        )
        self._set_up_network()
        self.progress = progress.Progress()
        self.stages = {}
        self._adapters = saving.LoraAdapters(policy)
        self._trained_ids = [id(v) for v in policy.trainable_variables]
        self._sources = {}
        self.built = True

    def _set_up_text(self, stop_token_ids, chat_template):
        self.tokenizer, self.chat_template = standardize.tokenizer_of(
            getattr(self.policy, "preprocessor", None),
            chat_template,
            self.policy.backbone,
        )
        size = network.vocabulary_size(self.policy.backbone)
        self.stop_token_ids = standardize.stop_token_ids_of(
            stop_token_ids, self.tokenizer, size
        )
        if self.tokenizer is not None:
            standardize.remember_text(
                self.policy, self.tokenizer, self.stop_token_ids
            )
        reader = images.reader_of(self.policy)
        self.encoder = prompts.PromptEncoder(
            self.tokenizer, self.prompt_buckets, size, self.truncate, reader
        )

    def _set_up_network(self):
        self.decoder = rollouts.Decoder(
            self.policy,
            self.max_completion_length,
            self.stop_token_ids,
            self.temperature,
        )
        self.head = rollouts.Head(self.policy, self.temperature)
        sets = self.weight_sets
        self.reader = rollouts.Reader(
            self.policy, self.head, sets.using, self.decoder.cache_builder
        )
        self.rollout = rollouts.Rollout(self.decoder, self.reader, sets)

    @property
    def reward(self):
        """What scores the completions; may be set between calls of `fit`."""
        return self._scorer.origin

    @reward.setter
    def reward(self, reward):
        # Weights belong to a list of rewards: a single reward that replaces
        # the list has none.
        is_list = isinstance(reward, (list, tuple))
        self._set_reward(reward, self.reward_weights if is_list else None)

    def _set_reward(self, reward, weights):
        scorer = rewards_lib.get(reward, weights)
        checks.check_reward(self.policy, scorer, self.tokenizer)
        placement.check_reward(scorer)
        self.reward_weights = weights
        self._scorer = scorer

    def __setattr__(self, name, value):
        if name == "reward":
            # On PyTorch `Module.__setattr__` would register a Keras model as a
            # submodule and never reach the property setter.
            type(self).reward.fset(self, value)
        else:
            super().__setattr__(name, value)

    @property
    def anchor(self):
        """The anchor's values, see `keras_bond.training.weight_sets.Anchor`."""
        return self.weight_sets.anchor

    @property
    def prompts_seen(self):
        """int32 variable. Number of prompts trained on so far."""
        return self.progress.prompts_seen

    def using(self, weights):
        """Returns a context in which the policy runs with a weight set.

        Args:
            weights: str, one of `weight_names()`.
        """
        return self.weight_sets.using(weights)

    def weight_names(self):
        """Names of the weight sets: "policy", "anchor", maybe "reference"."""
        return self.weight_sets.names

    def set_anchor_rule(self, update_rate, every):
        """Sets how the anchor moves, see `Anchor.set_rule`."""
        self.anchor.set_rule(update_rate, every)

    def num_updates(self):
        """Optimizer updates so far, an int."""
        return int(ops.convert_to_numpy(self.optimizer.iterations))

    def sync(self):
        """Makes the variables hold the current state in the middle of `fit`."""
        if backend.name == "jax":
            self.jax_state_sync()

    def compile(
        self,
        optimizer="adam",
        *,
        rollout_batch_size=None,
        gradient_accumulation_steps=1,
        rematerialize=False,
        max_skipped_steps=10,
        run_eagerly=False,
        jit_compile="auto",
        steps_per_execution=1,
        auto_scale_loss=True,
    ):
        """Sets the optimizer and how a step runs. The trainer defines the loss.

        `rollout_batch_size`, `gradient_accumulation_steps` and `rematerialize`
        trade time for memory and do not change results.

        Args:
            optimizer: `keras.optimizers.Optimizer`, or its name. The paper uses
                Adam at 3e-6 for all weights; LoRA adapters need 1e-4 to 2e-3.
            rollout_batch_size: int, or `None` for the whole batch. Number of
                prompts whose completions are drawn at once, which bounds the
                size of the key-value cache. Must divide the batch size of
                `fit`; other batches are padded.
                Defaults to `None`.
            gradient_accumulation_steps: int. Number of parts in which the
                gradient of a batch is computed. Only the activations of one
                part are in memory, at the cost of one more forward pass.
                Baselines are still computed over the whole batch; the
                optimizer's argument of the same name accumulates over several
                batches instead. Must divide the batch size of `fit`; other
                batches are padded. Defaults to 1.
            rematerialize: bool. Whether each block of the network keeps only
                its inputs for the backward pass and recomputes its activations,
                at the cost of one more forward pass. XLA on a CPU undoes this.
                Defaults to `False`.
            max_skipped_steps: int. A step whose loss or gradient is not finite
                is skipped. Training ends with an error after this many skipped
                steps in a row. Defaults to 10.
            run_eagerly: bool. Whether to run the stages of a step without
                compiling them, for debugging. Defaults to `False`.
            jit_compile: bool or `"auto"`. Whether TensorFlow compiles the
                stages with XLA. JAX always does. Defaults to `"auto"`, which
                means `True`.
            steps_per_execution: int. See `keras.Model.compile`.
            auto_scale_loss: bool. See `keras.Model.compile`.

        Raises:
            ValueError: if the optimizer cannot update the policy's variables,
                or an argument is out of range.
        """
        optimizer = keras.optimizers.get(optimizer)
        checks.check_optimizer(optimizer, self.policy.trainable_variables)
        warn_learning_rate(optimizer, self.policy)
        checks.warn_weight_decay(optimizer, self.policy)
        if rollout_batch_size is not None:
            check_count("rollout_batch_size", rollout_batch_size, 1)
        check_count(
            "gradient_accumulation_steps", gradient_accumulation_steps, 1
        )
        check_count("max_skipped_steps", max_skipped_steps, 1)
        # On every backend the step itself is Python that calls compiled stages,
        # so Keras must not compile it.
        super().compile(
            optimizer=optimizer,
            run_eagerly=True,
            jit_compile=False,
            steps_per_execution=steps_per_execution,
            auto_scale_loss=auto_scale_loss,
        )
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        self.rollout_batch_size = rollout_batch_size
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.rematerialize = rematerialize
        self.max_skipped_steps = max_skipped_steps
        self.compiles_stages = not run_eagerly
        self.jit_compiles_stages = jit_compile in ("auto", True)
        self.stages = {}
        self._compile_arguments = {
            "rollout_batch_size": rollout_batch_size,
            "gradient_accumulation_steps": gradient_accumulation_steps,
            "rematerialize": rematerialize,
            "max_skipped_steps": max_skipped_steps,
            "run_eagerly": run_eagerly,
            "jit_compile": jit_compile,
            "steps_per_execution": steps_per_execution,
            "auto_scale_loss": auto_scale_loss,
        }

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_data=None,
        shuffle=True,
        initial_epoch=0,
        steps_per_epoch=None,
        validation_steps=None,
        validation_batch_size=None,
        validation_freq=1,
    ):
        """Trains the policy on prompts, like `keras.Model.fit`.

        If the loaded weights were saved in the middle of an epoch and the
        prompts are the same, training continues with the next batch of that
        epoch. `keras.callbacks.BackupAndRestore` restores the epoch number
        too.

        Args:
            x: the prompts: a list or array of str; a dict of columns or data
                frame with `"prompts"`, or with `"token_ids"` and
                `"padding_mask"`; or a `tf.data.Dataset`, grain dataset,
                Hugging Face dataset, PyTorch `DataLoader`,
                `keras.utils.PyDataset` or another iterable of these. All other
                columns are passed to the reward.
            y: must be `None`.
            batch_size: int. Prompts per step. Defaults to 32 for in-memory
                prompts.
            epochs: int. Number of passes over the prompts.
            verbose: see `keras.Model.fit`. The bar shows reward, KL and win
                rate, see `keras_bond.callbacks.ProgressBar`.
            callbacks: list of `keras.callbacks.Callback`.
            validation_data: prompts as in `x`, for `evaluate`.
            shuffle: bool. Whether to shuffle in-memory prompts in each epoch.
                The order depends on `seed` and the number of prompts seen.
            initial_epoch: int. See `keras.Model.fit`.
            steps_per_epoch: int. Required for infinite datasets. An iterable
                of unknown length is then read as needed and repeated if it
                ends; without it, all of it is read once per epoch.
            validation_steps: int. See `keras.Model.fit`.
            validation_batch_size: int. Defaults to `batch_size`.
            validation_freq: int or list. See `keras.Model.fit`.

        Returns:
            a `keras.callbacks.History`.

        Raises:
            TypeError, ValueError: if prompts or rewards do not have the
                required format. The weights are then those of the last
                complete step.
        """
        checks.check_compiled(self)
        self.check_ready()
        # On TensorFlow Keras never frees `train`, so it must hold no trainer.
        seed_order = functools.partial(self.progress.order_seed, self.seed)
        order_seed = seed_order if shuffle else None
        train = self._to_batches(
            x, y, batch_size, order_seed, steps=steps_per_epoch
        )
        self.check_batch(train)
        if train.is_full:
            checks.check_parts(self, train.prompts_per_batch)
        self._check_endless(train, steps_per_epoch, "steps_per_epoch")
        if validation_data is not None:
            validation_data = self._to_batches(
                validation_data,
                None,
                validation_batch_size,
                steps=validation_steps,
                default_size=batch_size or 32,
            )
            self._check_endless(
                validation_data, validation_steps, "validation_steps"
            )
        self._sources = {"train": train, "test": validation_data}
        callbacks = self.complete_callbacks(callbacks)
        callbacks = self.with_own_callbacks(callbacks, verbose)
        if train.is_endless or steps_per_epoch is None:
            callbacks = self._follow_progress(train, steps_per_epoch, callbacks)
            steps_per_epoch = None
        self.progress.start_run()
        self._initial_epoch = None
        with (
            placement.sharing_batches(train),
            progress.short_epochs(steps_per_epoch),
            self.restored_state(),
        ):
            return super().fit(
                train,
                epochs=epochs,
                verbose=verbose,
                callbacks=callbacks,
                validation_data=validation_data and (validation_data,),
                shuffle=False,
                initial_epoch=initial_epoch,
                steps_per_epoch=steps_per_epoch,
                validation_steps=validation_steps,
                validation_freq=validation_freq,
            )

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        steps=None,
        callbacks=None,
        return_dict=False,
        **kwargs,
    ):
        """Draws and scores completions of the prompts without training.

        The draws depend only on `seed` and on the position of each prompt, so
        two evaluations on the same prompts differ only through the weights.

        Args:
            x: prompts, as in `fit`.
            y: must be `None`.
            batch_size: int. Prompts per step. Defaults to 32 for in-memory
                prompts.
            verbose, steps, callbacks, return_dict: see `keras.Model.evaluate`.

        Returns:
            the logged values: a list or, with `return_dict=True`, a dict.
        """
        checks.check_compiled(self)
        self.check_ready()
        test = self._to_batches(x, y, batch_size, steps=steps)
        self._check_endless(test, steps, "steps")
        self.check_given(test)
        self._sources["test"] = test
        if kwargs.pop("sample_weight", None) is not None:
            raise ValueError(
                "Prompts have no weights: `sample_weight` must be None. "
                "Received: sample_weight"
            )
        with placement.sharing_batches(test), self.restored_state():
            return super().evaluate(
                test,
                verbose=verbose,
                steps=steps,
                callbacks=self.with_own_callbacks(callbacks, verbose),
                return_dict=return_dict,
                **kwargs,
            )

    def with_own_callbacks(self, callbacks, verbose):
        """Adds the callbacks of `fit` and `evaluate` that users never see."""
        if isinstance(callbacks, keras.callbacks.CallbackList):
            # Keras evaluates in the middle of `fit`, with its callbacks.
            return callbacks
        self.announces_stages = verbose != 0
        callbacks = as_list(with_progress_bar(callbacks, verbose))
        after = [SamplingCheck(self.policy), NothingLearned(verbose != 0)]
        return [Unscored(callbacks), *callbacks, *after]

    def _follow_progress(self, train, steps_per_epoch, callbacks):
        """Takes the start and number of each epoch from the loaded weights."""
        train.start_epoch = self.progress.start_epoch
        if train.is_endless:
            train.steps_per_epoch = steps_per_epoch
            train.left_of_epoch = self.progress.left_of_epoch
        resume = progress.Resume(self.progress, train, callbacks)
        return [*callbacks, resume]

    def _to_batches(self, x, y, batch_size, order_seed=None, **options):
        if y is not None:
            raise ValueError(
                "Prompts have no targets: `y` must be None. Pass what the "
                'reward needs as columns: {"prompts": ..., "answer": ...}. '
                f"Received: y of type {type(y).__name__}"
            )
        # Whole parts, of a size that can be sharded.
        row_factor = math.lcm(
            self.rollout_batch_size or 1,
            self.gradient_accumulation_steps * backend.devices.num_replicas(),
        )
        return prompts.to_batches(
            x, self.encoder, batch_size, order_seed, row_factor, **options
        )

    def _check_endless(self, batches, steps, name):
        if batches.num_batches is None and steps is None:
            raise ValueError(
                f"`{name}` must be given for an infinite dataset. "
                f"Received: {name}=None"
            )

    def check_ready(self):
        """Raises an error if what is trainable in the policy has changed."""
        self.check_weights()
        placement.check_placement(self.policy)
        now = [id(v) for v in self.policy.trainable_variables]
        if now != list(self._trained_ids):
            raise ValueError(
                "What is trainable in `policy` must not change once the "
                "trainer is built, because the anchor is a copy of it: freeze "
                "layers or call `enable_lora` first, then build the trainer. "
                f"Received: {len(now)} trainable variables, "
                f"{len(self._trained_ids)} when it was built"
            )
