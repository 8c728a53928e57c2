"""The training step on samples of a policy and an anchor, from top to bottom.

    collect                 prompts -> a batch to train on
        embed_images        pixels -> embeddings, of prompts that have images
        draw                completions of policy and anchor, or given ones
        score_with_anchor   log-probabilities of anchor and reference
        score               rewards, on the host
    targets                 rewards -> training targets, by the subclass
    call                    log-probabilities of the policy, with gradient
    compute_loss            loss terms, by the subclass
    after_update            anchor update, counters and logging

`backend.StagedTrainer` calls these methods in this order. It computes the
gradients and applies the optimizer between the last two.
"""

import numpy as np
from keras import ops

from keras_bond import backend
from keras_bond.arguments import check_count
from keras_bond.backend import devices
from keras_bond.backend import parts as parts_lib
from keras_bond.data.given import GIVEN_IDS
from keras_bond.data.given import GivenReader
from keras_bond.formulas import averages
from keras_bond.rewards import scores as scores_lib
from keras_bond.rewards.samples import DRAWN
from keras_bond.rewards.samples import Samples
from keras_bond.rollouts.rollout import Stream
from keras_bond.training import checks
from keras_bond.training import metrics
from keras_bond.training import sampling_check
from keras_bond.training.policy_trainer import PolicyTrainer

# Entries of a batch that the network reads: prompts and their completions.
PROMPTS = ("prompt_ids", "prompt_lengths", "images")
COMPLETIONS = (*PROMPTS, "completion_ids", "mask")
# Entries of a batch that only sampling and rewards need.
NOT_LEARNED_FROM = (
    "prompt_index",
    "index_in_batch",
    GIVEN_IDS,
    "token_ids",
    "padding_mask",
)


class AnchoredTrainer(metrics.LogsRewardMetrics, PolicyTrainer):
    """Trains a policy on samples of itself and of an anchor.

    This is the base class of BOND and its baselines. Subclasses implement
    `targets`, which turns rewards into training targets, and `loss_terms`,
    which turns targets and log-probabilities into the terms of the loss.

    Args:
        policy, reward: see `keras_bond.Bond`.
        logged_names: list of str. Names that the subclass logs in addition to
            the common ones: its loss terms, and entries that its `targets`
            adds to a batch.
        num_policy_samples: int. Completions of the policy per prompt.
        num_anchor_samples: int. Completions of the anchor per prompt, unless
            the data give them.
        best_of_n: int. Anchor samples that the loss needs. Defaults to 1.
        retokenize: bool. See `keras_bond.Bond`. Defaults to `False`.
        **kwargs: for `PolicyTrainer`.

    Call arguments:
        inputs: dict with `prompt_ids` int32 `(batch, prompt_length)`,
            `prompt_lengths` int32 `(batch,)`, and `completion_ids` int32 and
            `mask` bool `(batch, samples, max_completion_length)`.

    Returns of a call:
        dict with `log_probs` float32 `(batch, samples)`: `log π(y|x)` in nats.
    """

    def __init__(
        self,
        policy,
        reward,
        *,
        num_policy_samples,
        num_anchor_samples,
        logged_names,
        best_of_n=1,
        retokenize=False,
        **kwargs,
    ):
        check_count("num_anchor_samples", num_anchor_samples, 0)
        check_count("num_policy_samples", num_policy_samples, 0)
        checks.check_one_of("retokenize", retokenize, (False, True))
        super().__init__(policy, reward, **kwargs)
        self.num_policy_samples = num_policy_samples
        self.num_anchor_samples = num_anchor_samples
        self.best_of_n = best_of_n
        self.retokenize = retokenize
        if num_anchor_samples:
            self.encoder.given_reader = GivenReader(
                self.encoder,
                self.stop_token_ids,
                self.max_completion_length,
                best_of_n,
                retokenize,
            )
        self.trackers = metrics.make_trackers(
            logged_names,
            self.weight_sets.reference is not None,
            num_policy_samples,
            num_anchor_samples,
        )
        self.reward_metrics = metrics.RewardMetrics()
        self.pace = backend.Pace()
        self._refused_difference = sampling_check.limits_of(policy)[1]

    def collect(self, inputs, training):
        """Draws, reads and scores completions of a batch of prompts.

        These are steps 1 to 3 of algorithm 2, up to the rewards. The method is
        Python that calls compiled stages; nothing here has a gradient. All
        device work is dispatched before the host scores anything, so that with
        asynchronous dispatch the host scores one part of the batch while the
        device draws the next.

        Args:
            inputs: dict of int32 tensors: `prompt_ids` `(batch,
                prompt_length)`, and `prompt_lengths`, `prompt_index` (position
                of the prompt in the data, -1 for rows that pad the batch) and
                `index_in_batch` `(batch,)`; maybe those of images.
            training: bool. In training the random numbers depend on the number
                of prompts seen before, in evaluation on `prompt_index`.

        Returns:
            dict of tensors: the prompts, what `draw` and `score_with_anchor`
            return, and `rewards`, `reward_residuals` and `ranks` float32
            `(batch, P + k)`, 0 for prompts that are masked out, see
            `keras_bond/rewards/scores.py`. Two bool tensors `(batch,)` are
            the masks: `present` for real prompts, and `valid` for prompts that
            could be scored.

        Raises:
            FloatingPointError: if too many steps were skipped in a row.
        """
        parts = parts_lib.cut(
            "rollout_batch_size",
            self.rollout_batch_size,
            self.encoder.cut(inputs),
        )
        parts = [self.rollout.embed_images(p, self.run_stage) for p in parts]
        drawn = [{**part, **self.draw(part, training)} for part in parts]
        known = [self.score_with_anchor(part, training) for part in drawn]
        batches = [
            {**part, **log_probs, **self.score(part, training)}
            for part, log_probs in zip(drawn, known)
        ]
        batches = [
            {k: v for k, v in batch.items() if k not in NOT_LEARNED_FROM}
            for batch in batches
        ]
        if training:
            self.check_skipped()
        return parts_lib.concatenate(batches)

    def draw(self, inputs, training):
        """Draws the policy's and the anchor's samples of each prompt.

        `Rollout.draw` takes those of the anchor from the data if they are given
        there.

        Args:
            inputs, training: see `collect`.

        Returns:
            dict of tensors: over `(batch, P + k)`, the P policy samples first,
            `completion_ids`, `mask`, `terminated`, `token_ids`,
            `padding_mask`, `tie_breakers` and `sampling_log_probs`, those of
            the weight set that drew the sample; over `(batch, P)` `entropies`,
            if the policy is sampled.
        """

        def collate(inputs, *drawn):
            collated = self.rollout.collate(inputs, *drawn)
            count = collated["completion_ids"].shape[1]
            ties = self._stream(inputs, training).uniforms("ties", count, 1)
            collated["tie_breakers"] = ties[:, :, 0]
            collated["sampling_log_probs"] = ops.concatenate(
                [draws["log_probs"] for draws in drawn], axis=1
            )
            if self.num_policy_samples:
                entropies = drawn[0]["entropies"]
                collated["entropies"] = entropies[:, : self.num_policy_samples]
            return collated

        counts = {
            "policy": self.num_policy_samples,
            "anchor": self.num_anchor_samples,
        }
        drawn = [
            self.run_stage(
                _stage_name(f"rollout {' and '.join(counts)}", training),
                lambda inputs, counts=counts: self.rollout.draw(
                    inputs, counts, self._stream(inputs, training)
                ),
                inputs,
            )
            for counts in self.rollout.plan_draws(inputs, counts)
        ]
        name = _stage_name("collate", training)
        return self.run_stage(name, collate, inputs, *drawn)

    def score_with_anchor(self, drawn, training):
        """Computes log-probabilities of the samples under anchor and reference.

        Args:
            drawn: dict of tensors: the prompts and what `draw` returned.
            training: bool.

        Returns:
            dict of tensors: `anchor_log_probs` `(batch, P + k)`; with a
            reference, `reference_log_probs` `(batch, P)`; in evaluation also
            `anchor_kls` and `reference_kls` `(batch, P)`, exact over the
            vocabulary.
        """
        if not self.num_policy_samples:
            return {"anchor_log_probs": drawn["sampling_log_probs"]}

        def score(batch):
            samples = self._policy_samples(batch)
            others = self.weight_sets.others
            if training:
                scored = self.truncated(
                    samples, lambda: self.reader.read_others(samples, others)
                )
            else:
                scored = self.reader.compare(samples, others)
            # Those of the anchor's own samples are known.
            own = batch["sampling_log_probs"][:, self.num_policy_samples :]
            scored["anchor_log_probs"] = ops.concatenate(
                [scored["anchor_log_probs"], own], axis=1
            )
            return scored

        names = (*COMPLETIONS, "sampling_log_probs")
        batch = {name: drawn[name] for name in names if name in drawn}
        return self.run_stage(
            _stage_name("score_with_anchor", training), score, batch
        )

    def score(self, drawn, training):
        """Scores the completions of a rollout in one call of the reward.

        Those whose rewards are given are not scored. If several processes train
        together, each scores its own rows.

        Args:
            drawn: dict of tensors: the prompts and what `draw` returned.
            training: bool. Whether the prompts are training or test data.

        Returns:
            dict of tensors: `rewards`, `reward_residuals`, `ranks`, `present`
            and `valid`, see `collect`.
        """
        source = self._sources["train" if training else "test"]
        prompt_index = devices.to_host(drawn["prompt_index"])
        present = prompt_index >= 0
        rewards = np.full((len(present), drawn["mask"].shape[1]), np.nan)
        self.pace.count(devices.to_host(drawn["mask"])[present])
        if present.any():
            table = source.take(prompt_index[present].tolist())
            given = table.given.get("rewards", [[]] * len(table))
            scores = np.empty((len(table), 0))
            num_scored = rewards.shape[1] - len(given[0])
            if num_scored:
                arrays = {
                    name: devices.to_host(drawn[name])[present, :num_scored]
                    for name in DRAWN
                }
                samples = Samples.of_rollout(arrays, table, self.tokenizer)
                scores = self._scorer(samples).reshape(-1, num_scored)
                self.reward_metrics.add(samples.log.metrics)
            rewards[present] = np.concatenate([scores, given], axis=1)
        valid = np.isfinite(rewards).all(axis=1)
        rewards[~valid] = 0.0
        scored = {
            **scores_lib.for_device(rewards),
            "present": present,
            "valid": valid,
        }
        return {k: devices.to_device(v) for k, v in scored.items()}

    def targets(self, batch):
        """Turns the rewards of a batch into training targets.

        Args:
            batch: dict of tensors, see `collect`.

        Returns:
            `batch`, extended by the entries that `loss_terms` needs.
        """
        return batch

    def call(self, inputs):
        if "completion_ids" not in inputs:
            # `fit` first builds the model by calling it on a batch of its data,
            # which here are prompts without completions.
            return {"log_probs": ops.zeros((inputs["prompt_ids"].shape[0], 0))}

        def read(inputs):
            log_probs = self.reader.read(inputs, self.rematerialize)
            return {"log_probs": log_probs, **self.more_outputs(inputs)}

        inputs = {name: inputs[name] for name in COMPLETIONS if name in inputs}
        if self.reader.groups is None:
            return self._in_parts(read, inputs)
        # Sorted rows of several prompts make parts of their own.
        num_parts = self.gradient_accumulation_steps
        log_probs = self.reader.read(inputs, self.rematerialize, num_parts)
        more = self._in_parts(self.more_outputs, inputs)
        return {"log_probs": log_probs, **more}

    def truncated(self, batch, function):
        if self.compiles_stages:
            return self.reader.truncated(batch["mask"], function)
        return function()

    def more_outputs(self, inputs):
        """Additional outputs of `call` that the subclass's loss needs."""
        return {}

    def loss_terms(self, batch, outputs):
        """Returns the terms of the loss with their weights.

        Args:
            batch: dict of tensors, see `targets`.
            outputs: dict of tensors, what `call` returned.

        Returns:
            dict that maps the name of each term to `(weight, losses)`: a float
            and a float tensor `(batch,)`.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` must define `loss_terms`."
        )

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Computes the mean loss of the valid prompts from `loss_terms`.

        Args:
            x: dict of tensors, see `targets`.
            y: unused.
            y_pred: dict of tensors, what `call` returned.
            sample_weight: unused.
            training: unused.

        Returns:
            float32 scalar.
        """
        terms = self.loss_terms(x, y_pred).values()
        loss = sum(weight * losses for weight, losses in terms)
        return averages.masked_mean(loss, x["valid"])

    def is_good(self, batch, outputs, loss, gradients):
        """Whether loss and gradients are finite and some prompt is valid.

        The policy must also be the one that was sampled, see `SamplingCheck`.
        """
        finite = backend.all_finite([loss, *gradients])
        good = ops.logical_and(finite, ops.any(batch["valid"]))
        if self.num_policy_samples == 0:
            return good
        log_probs = outputs["log_probs"][:, : self.num_policy_samples]
        difference = metrics.sampling_difference(batch, log_probs)
        return ops.logical_and(good, difference <= self._refused_difference)

    def after_update(self, batch, outputs, loss, before, is_good, norm):
        """Updates anchor, counters and metrics; step 6 of algorithm 2.

        Args:
            batch: dict of tensors, the batch of the update.
            outputs: dict of tensors, what `call` returned.
            loss: float scalar tensor.
            before: what `before_update` returned.
            is_good: bool scalar tensor. Whether the update was applied.
            norm: float scalar tensor. Norm of the gradient of the scaled loss.

        Returns:
            dict of the logged values.
        """
        self.log_step(batch, outputs, loss, is_good)
        self._count(batch, is_good)
        variables = self.policy.trainable_variables
        updated = self.weight_sets.anchor.follow(
            variables, self.optimizer.iterations
        )
        metrics.log_update(
            self.trackers, before, norm, is_good, variables, updated
        )
        return self.get_metrics_result()

    def evaluate_batch(self, batch):
        """Logs an evaluation batch.

        Args:
            batch: dict of tensors, see `targets`.

        Returns:
            dict of the logged values, without those about updates.
        """
        outputs = self(batch)
        loss = self.compute_loss(x=batch, y_pred=outputs, training=False)
        self.log_step(batch, outputs, loss, is_good=True)
        return metrics.of_evaluation(self.get_metrics_result(), self.trackers)

    def log_step(self, batch, outputs, loss, is_good):
        """Updates all metrics that describe a batch."""
        log_probs = outputs["log_probs"][:, : self.num_policy_samples]
        terms = self.loss_terms(batch, outputs)
        losses = {name: values for name, (_, values) in terms.items()}
        metrics.update(self.trackers, batch, log_probs, losses, is_good)
        metrics.update_loss(self.metrics, batch, loss, is_good)

    def _count(self, batch, is_good):
        """Counts prompts seen and steps skipped."""
        progress = self.progress
        count = ops.sum(ops.cast(batch["present"], "int32"))
        progress.prompts_seen.assign(progress.prompts_seen + count)
        # A step in which no prompt could be scored is not a sign of divergence,
        # so it does not count as skipped.
        fails = ops.logical_not(is_good)
        fails = ops.logical_and(fails, ops.any(batch["valid"]))
        skipped = ops.cast(fails, "int32")
        in_a_row = progress.skipped_in_a_row
        in_a_row.assign((in_a_row + 1) * skipped)
        self.trackers[metrics.SKIPPED].update_state(skipped)

    def check_skipped(self):
        """Raises an error after too many skipped steps.

        It is called once a batch is scored, when the device has finished the
        previous update, so that reading the counter does not block.

        Raises:
            FloatingPointError: if too many steps were skipped in a row.
        """
        skipped = int(ops.convert_to_numpy(self.progress.skipped_in_a_row))
        if skipped >= self.max_skipped_steps:
            raise checks.skipped_error(skipped, self.max_skipped_steps)

    def before_update(self):
        return metrics.watch_update(
            self.policy.trainable_variables, self.optimizer
        )

    def _stream(self, inputs, training):
        """Random number stream of a batch."""
        if not training:
            return Stream(self.seed, "evaluate", inputs["prompt_index"])
        seen = ops.convert_to_tensor(self.progress.prompts_seen)
        return Stream(self.seed, "train", seen + inputs["index_in_batch"])

    def _policy_samples(self, batch):
        """`batch` with only the completions drawn from the policy."""
        p = self.num_policy_samples
        own = {k: batch[k][:, :p] for k in ("completion_ids", "mask")}
        return {**batch, **own}

    def _in_parts(self, function, inputs):
        """Applies a function in `gradient_accumulation_steps` parts."""
        if self.gradient_accumulation_steps == 1:
            return function(inputs)
        parts = parts_lib.split_by(
            "gradient_accumulation_steps",
            self.gradient_accumulation_steps,
            inputs,
        )
        return parts_lib.join(
            backend.map_parts(function, parts, self.variables)
        )

    def compile(self, optimizer="adam", **kwargs):
        super().compile(optimizer=optimizer, **kwargs)
        self.weight_sets.anchor.updates_seen.assign(self.num_updates())

    compile.__doc__ = PolicyTrainer.compile.__doc__

    def get_config(self):
        return {
            **super().get_config(),
            "num_policy_samples": self.num_policy_samples,
            "num_anchor_samples": self.num_anchor_samples,
            "best_of_n": self.best_of_n,
            "retokenize": self.retokenize,
        }


def _stage_name(name, training):
    return name if training else f"evaluate {name}"
