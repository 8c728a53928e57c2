"""Prompts in, completions scored: what every trainer of a policy shares."""

import contextlib
import warnings

import keras

from keras_bond import rewards as rewards_lib
from keras_bond import rollouts
from keras_bond.callbacks.interface import TrainerInterface
from keras_bond.callbacks.progress_bar import with_progress_bar
from keras_bond.data import prompts
from keras_bond.data.tokenizer import TextTokenizer
from keras_bond.training import checks
from keras_bond.training import placement
from keras_bond.training import progress
from keras_bond.training import saving
from keras_bond.training import scoring
from keras_bond.training import standardize
from keras_bond.training.completing_model import CompletingModel


class PolicyTrainer(CompletingModel, TrainerInterface):
    """A Keras model whose training data are prompts.

    One training step is rollout -> rewards -> targets -> Keras's own step. A
    child says which completions are drawn (`rollout`) and what else is to be
    known of them (`judge`), what is learned from them (`targets`, `call`,
    `compute_loss`) and what follows an update (`watched_weights`,
    `after_update`).

    The arguments are those of `keras_bond.JBond`.
    """

    def __init__(
        self,
        policy,
        reward,
        *,
        max_prompt_length,
        max_completion_length,
        reward_weights=None,
        prompt_buckets=None,
        truncate=None,
        stop_token_ids="auto",
        temperature=1.0,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.check_policy(policy)
        placement.check_placement(policy)
        checks.check_lengths(policy, max_prompt_length, max_completion_length)
        checks.check_one_of("truncate", truncate, (None, "left"))
        self.policy = policy
        self.max_prompt_length = max_prompt_length
        self.max_completion_length = max_completion_length
        self.prompt_buckets = standardize.prompt_buckets_of(
            prompt_buckets, max_prompt_length
        )
        self.truncate = truncate
        self.temperature = float(temperature)
        self.seed = standardize.seed_of(seed)
        self._set_up_text(policy, stop_token_ids)
        self._set_reward(reward, reward_weights)
        self.prompts_seen = self.add_weight(
            name="prompts_seen",
            shape=(),
            dtype="int32",
            trainable=False,
            initializer="zeros",
        )
        self.progress = progress.Progress(self.prompts_seen)
        self._adapters = saving.LoraAdapters(policy)
        self._trained_ids = [id(v) for v in policy.trainable_variables]
        self._sources = {}
        self.built = True

    def _set_up_text(self, policy, stop_token_ids):
        preprocessor = getattr(policy, "preprocessor", None)
        self.codec = preprocessor and TextTokenizer(preprocessor)
        self.stop_token_ids = standardize.stop_token_ids_of(
            stop_token_ids, self.codec
        )
        self.encoder = prompts.PromptEncoder(
            self.codec, self.prompt_buckets, self.truncate
        )
        self.decoder = rollouts.Decoder(
            policy,
            self.max_completion_length,
            self.stop_token_ids,
            self.temperature,
        )
        self.head = rollouts.Head(policy, self.temperature)

    @property
    def reward(self):
        """What scores the completions; may be set between calls of `fit`."""
        return self._scorer.origin

    @reward.setter
    def reward(self, reward):
        # Weights belong to a list: one reward that takes its place has none.
        is_list = isinstance(reward, (list, tuple))
        self._set_reward(reward, self.reward_weights if is_list else None)

    def _set_reward(self, reward, weights):
        scorer = rewards_lib.get(reward, weights)
        checks.check_reward(self.policy, scorer, self.codec)
        placement.check_reward(scorer)
        self.reward_weights = weights
        self._scorer = scorer

    def __setattr__(self, name, value):
        if name == "reward":
            # PyTorch would take a Keras model for a submodule, past the setter.
            type(self).reward.fset(self, value)
        else:
            super().__setattr__(name, value)

    def weight_names(self):
        """Names of the weight sets, see `TrainerInterface`."""
        return ("policy", *self.weight_sets)

    def num_updates(self):
        """Optimizer updates so far, an int."""
        return int(keras.ops.convert_to_numpy(self.optimizer.iterations))

    def sync(self):
        """Makes the variables hold the current state in the middle of `fit`."""
        if hasattr(self, "jax_state_sync"):
            self.jax_state_sync()

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
        """Trains the policy on prompts, as `keras.Model.fit` does on arrays.

        With weights that were loaded in the middle of an epoch, and the same
        prompts, it goes on with the next batch of that epoch;
        `keras.callbacks.BackupAndRestore` restores the number of the epoch
        too.

        Args:
            x: the prompts: list or array of str, a dict of columns with
                `"prompts"`, or with `"token_ids"` and `"padding_mask"`; or a
                batched `tf.data.Dataset`, grain data set, PyTorch `DataLoader`
                or `keras.utils.PyDataset` of these. Other columns go to the
                reward.
            y: must be `None`.
            batch_size: int. Prompts a step; 32 for in-memory prompts.
            epochs: int. Passes over the prompts.
            verbose: see `keras.Model.fit`; the bar shows reward, KL and win
                rate, see `keras_bond.callbacks.ProgressBar`.
            callbacks: list of `keras.callbacks.Callback`.
            validation_data: prompts as in `x`, for `evaluate`.
            shuffle: bool. Whether in-memory prompts come in a new order in
                each epoch, a function of `seed` and of the prompts seen.
            initial_epoch: int. See `keras.Model.fit`.
            steps_per_epoch: int. Needed for endless data sets.
            validation_steps: int. See `keras.Model.fit`.
            validation_batch_size: int. Defaults to `batch_size`.
            validation_freq: int or list. See `keras.Model.fit`.

        Returns:
            a `keras.callbacks.History`.

        Raises:
            TypeError, ValueError: for prompts or rewards that do not fit the
                contract; the weights are those of the last complete step.
        """
        self.check_ready()
        order_seed = self._order_seed if shuffle else None
        train = self._to_batches(x, y, batch_size, order_seed)
        self.check_batch(train)
        self._check_endless(train, steps_per_epoch, "steps_per_epoch")
        if validation_data is not None:
            validation_data = self._to_batches(
                validation_data, None, validation_batch_size or batch_size
            )
        self._sources["train"] = train
        callbacks = self.complete_callbacks(callbacks)
        callbacks = with_progress_bar(callbacks, verbose)
        if train.is_endless or steps_per_epoch is None:
            callbacks = self._follow_progress(train, steps_per_epoch, callbacks)
            steps_per_epoch = None
        self.progress.start_run()
        self._initial_epoch = None
        with placement.sharing_batches(train), _short_epochs(steps_per_epoch):
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
        """Draws and scores completions of the prompts without learning.

        The draws depend on `seed` and on the position of each prompt only, so
        that two evaluations on the same prompts differ by the weights alone.

        Args:
            x: prompts, as in `fit`.
            y: must be `None`.
            batch_size: int. Prompts a step; 32 for in-memory prompts.
            verbose, steps, callbacks, return_dict: see `keras.Model.evaluate`.

        Returns:
            the logged numbers, a list or, with `return_dict=True`, a dict.
        """
        self.check_ready()
        test = self._to_batches(x, y, batch_size)
        self._check_endless(test, steps, "steps")
        self._sources["test"] = test
        kwargs.pop("sample_weight", None)
        with placement.sharing_batches(test):
            return super().evaluate(
                test,
                verbose=verbose,
                steps=steps,
                callbacks=with_progress_bar(callbacks, verbose),
                return_dict=return_dict,
                **kwargs,
            )

    def _follow_progress(self, train, steps_per_epoch, callbacks):
        """Lets the weights say where epochs of `train` start, and which."""
        train.start_epoch = self.progress.start_epoch
        if train.is_endless:
            train.steps_per_epoch = steps_per_epoch
            train.left_of_epoch = self.progress.left_of_epoch
        backup = keras.callbacks.BackupAndRestore
        is_restoring = any(isinstance(c, backup) for c in callbacks)
        resume = progress.Resume(self.progress, train, is_restoring)
        return [*callbacks, resume]

    def _order_seed(self):
        return (self.seed, self.progress.order_seed())

    def _to_batches(self, x, y, batch_size, order_seed=None):
        if y is not None:
            raise ValueError(
                "Prompts have no targets: `y` must be None. What the reward "
                'needs goes beside them: {"prompts": ..., "answer": ...}. '
                f"Received: y of type {type(y).__name__}"
            )
        return prompts.to_batches(x, self.encoder, batch_size, order_seed)

    def _check_endless(self, batches, steps, name):
        if batches.num_batches is None and steps is None:
            raise ValueError(
                f"`{name}` must be given for an endless data set. "
                f"Received: {name}=None"
            )

    def check_ready(self):
        """Refuses to run with a policy that changed since the start."""
        placement.check_placement(self.policy)
        now = [id(v) for v in self.policy.trainable_variables]
        if now != list(self._trained_ids):
            raise ValueError(
                "What is trainable in `policy` must not change once the "
                "trainer is built, for the anchor belongs to it: freeze layers "
                "or call `enable_lora` first, then build the trainer. "
                f"Received: {len(now)} trainable variables, "
                f"{len(self._trained_ids)} when it was built"
            )

    def score(self, inputs, rollout, training):
        """Scores the completions of a rollout on the host.

        Args:
            inputs: dict of tensors, a batch of prompts.
            rollout: dict of tensors, see `rollout` of the child.
            training: bool. Which data set the prompts are from.

        Returns:
            `inputs` and `rollout` in one dict, with `rewards` float32
            `(batch, num_samples)`, and two bool tensors `(batch,)`: `present`
            for real prompts, `valid` for those that could be scored too.
        """
        source = self._sources["train" if training else "test"]
        scores = scoring.score_rollout(
            self._scorer, self.codec, source, inputs["prompt_index"], rollout
        )
        batch = {**inputs, **rollout, **scores}
        return {k: v for k, v in batch.items() if k not in scoring.ONLY_THERE}


@contextlib.contextmanager
def _short_epochs(steps_per_epoch):
    """Lets an epoch that was resumed be shorter than Keras counted."""
    with warnings.catch_warnings():
        if steps_per_epoch is None:
            warnings.filterwarnings("ignore", "Your input ran out of data")
        yield
