"""Draws from policy and anchor, and weighs the likelihood of the draws."""

import math

from keras import ops

from keras_bond import formulas
from keras_bond import rollouts
from keras_bond.arguments import check_count
from keras_bond.callbacks import anchor as anchor_rules
from keras_bond.rollouts import sequences
from keras_bond.training import checks
from keras_bond.training import metrics as metrics_lib
from keras_bond.training import standardize
from keras_bond.training.policy_trainer import PolicyTrainer
from keras_bond.training.weight_sets import Anchor
from keras_bond.training.weight_sets import WeightSet

# What the network reads: prompts, and completions of them.
COMPLETIONS = ("prompt_ids", "prompt_lengths", "completion_ids", "mask")


class AnchoredTrainer(PolicyTrainer):
    """Trains a policy on samples of itself and of an anchor.

    What BOND and its rivals share. A child says what is learned: `targets`
    turns rewards into targets, and `loss_terms` these and the
    log-probabilities into the terms of the loss.

    Args:
        policy, reward: see `keras_bond.Bond`.
        logged_names: list of str. What a child logs beside the usual: the
            terms of its loss, and what it adds to a batch in `targets`.
        num_policy_samples: int, at least 1. Completions of the policy a prompt.
        num_anchor_samples: int. Completions of the anchor a prompt.
        reference: see `keras_bond.Bond`.
        **kwargs: for `PolicyTrainer`.

    Call arguments:
        inputs: dict with `prompt_ids` int32 `(batch, prompt_length)`,
            `prompt_lengths` int32 `(batch,)`, and `completion_ids` int32 and
            `mask` bool `(batch, samples, max_completion_length)`.

    Returns of a call:
        dict with `log_probs` float32 `(batch, samples)`: `log π(y|x)` in nats.
    """

    default_anchor_rule = anchor_rules.AnchorEMA

    def __init__(
        self,
        policy,
        reward,
        *,
        num_policy_samples,
        num_anchor_samples,
        logged_names,
        reference="auto",
        **kwargs,
    ):
        check_count("num_policy_samples", num_policy_samples, 1)
        check_count("num_anchor_samples", num_anchor_samples, 0)
        checks.check_one_of("reference", reference, ("auto", True, False))
        super().__init__(policy, reward, **kwargs)
        self.num_policy_samples = num_policy_samples
        self.num_anchor_samples = num_anchor_samples
        self.anchor = Anchor(policy.trainable_variables)
        self.weight_sets = {"anchor": self.anchor}
        self.has_reference = standardize.has_reference(reference, policy)
        if self.has_reference:
            self.reference = WeightSet(policy.trainable_variables, "reference")
            self.weight_sets["reference"] = self.reference
        self.trackers = metrics_lib.make_trackers(
            logged_names, self.has_reference, num_anchor_samples > 0
        )
        self._default_rule_announced = False

    def rollout(self, run, inputs, training):
        """Draws the policy's and the anchor's samples of each prompt.

        Steps 1 to 3 of algorithm 2 up to the rewards; nothing here has a
        gradient.

        Args:
            run: callable `run(name, function, *tensors)` that calls the
                function as a compiled stage.
            inputs: dict of int32 tensors: `prompt_ids` `(batch,
                prompt_length)`, and `prompt_lengths`, `rows` and `places`
                `(batch,)`.
            training: bool. In training the draws depend on how many prompts
                were seen before, in evaluation on the row numbers.

        Returns:
            dict of tensors: over `(batch, P + k)`, the P policy samples first,
            `completion_ids`, `mask`, `terminated`, `token_ids`, `padding_mask`
            and `tie_breakers`; over `(batch, P)` `entropies`; over `(batch,
            k)` `own_log_probs`, those of the anchor for its own samples.
        """
        counts = {"policy": self.num_policy_samples}
        if self.num_anchor_samples:
            counts["anchor"] = self.num_anchor_samples
        drawn = {
            weights: run(
                _stage_name(f"rollout {weights}", training),
                lambda inputs, weights=weights, count=count: self._draw(
                    inputs, weights, count, training
                ),
                inputs,
            )
            for weights, count in counts.items()
        }
        return run(
            _stage_name("lay out", training),
            lambda inputs, drawn: self._lay_out(inputs, drawn, training),
            inputs,
            drawn,
        )

    def _draw(self, inputs, weights, num_samples, training):
        uniforms = self._uniforms(
            inputs, weights, num_samples, self.max_completion_length, training
        )
        with self.using(weights):
            return self.decoder(
                inputs["prompt_ids"], inputs["prompt_lengths"], uniforms
            )

    def _lay_out(self, inputs, drawn, training):
        # By name: JAX hands dicts to a compiled function in another order.
        in_order = [
            drawn[name] for name in ("policy", "anchor") if name in drawn
        ]
        completion_ids = ops.concatenate(
            [draws["completion_ids"] for draws in in_order], axis=1
        )
        num_samples = completion_ids.shape[1]
        lots = self._uniforms(inputs, "ties", num_samples, 1, training)
        rollout = {
            **sequences.lay_out(
                inputs["prompt_ids"],
                inputs["prompt_lengths"],
                completion_ids,
                self.stop_token_ids,
            ),
            "tie_breakers": lots[:, :, 0],
            "entropies": drawn["policy"]["entropies"],
        }
        if "anchor" in drawn:
            rollout["own_log_probs"] = drawn["anchor"]["log_probs"]
        return rollout

    def judge(self, run, inputs, rollout, training):
        """Asks the other weight sets about the policy's samples.

        Args:
            run, inputs, training: see `rollout`.
            rollout: dict of tensors, what `rollout` returned.

        Returns:
            dict of tensors: over `(batch, P + k)` `anchor_log_probs`; over
            `(batch, P)`, with a reference, `reference_log_probs`, and in
            evaluation `anchor_kls` and `reference_kls`, exact over the
            vocabulary.
        """
        batch = {**inputs, **rollout}
        names = [n for n in (*COMPLETIONS, "own_log_probs") if n in batch]
        return run(
            _stage_name("judge", training),
            lambda batch: self._judge(batch, training),
            {name: batch[name] for name in names},
        )

    def _judge(self, batch, training):
        drawn = self._policys_own(batch)
        hidden = None if training else self._hidden(drawn)
        judged = {}
        for name in self.weight_sets:
            with self.using(name):
                other = self._hidden(drawn)
                log_probs = self.head.token_log_probs(
                    other, drawn["completion_ids"]
                )
            judged[f"{name}_log_probs"] = formulas.sequence_log_probs(
                log_probs, drawn["mask"]
            )
            if not training:
                kls = self._token_kls(hidden, other, name, drawn)
                judged[f"{name}_kls"] = formulas.sequence_log_probs(
                    kls, drawn["mask"]
                )
        if "own_log_probs" in batch:
            # The decoder knows the anchor's own samples already.
            judged["anchor_log_probs"] = ops.concatenate(
                [judged["anchor_log_probs"], batch["own_log_probs"]], axis=1
            )
        return judged

    def _token_kls(self, hidden, other_hidden, weights, inputs):
        """KL of the policy to another weight set, `(batch, samples, length)`.

        Args:
            hidden, other_hidden: what `_hidden` returned with each.
            weights: str. Name of the other.
            inputs: dict with `completion_ids`.
        """

        def kls(part):
            logits = self.head.logits(part["hidden"])
            with self.using(weights):
                other_logits = self.head.logits(part["other"])
            other_logits = ops.stop_gradient(other_logits)
            return formulas.token_kls(logits, other_logits, self.temperature)

        tensors = {"hidden": hidden, "other": ops.stop_gradient(other_hidden)}
        tensors["ids"] = inputs["completion_ids"]
        return self.head.map_tokens(kls, tensors)

    def _uniforms(self, inputs, purpose, num_samples, num_positions, training):
        rows = inputs["prompt_index"]
        if training:
            rows = (
                ops.convert_to_tensor(self.prompts_seen)
                + inputs["index_in_batch"]
            )
        return rollouts.uniform(
            self.seed,
            purpose if training else f"evaluate {purpose}",
            rows,
            num_samples,
            num_positions,
        )

    def _hidden(self, inputs, rematerialize=False):
        """Hidden states `(batch, samples, length, width)` of completions."""
        batch_size, num_samples, length = inputs["completion_ids"].shape
        hidden = rollouts.completion_hidden(
            self.policy,
            sequences.repeat_rows(inputs["prompt_ids"], num_samples),
            sequences.repeat_rows(inputs["prompt_lengths"], num_samples),
            ops.reshape(inputs["completion_ids"], (-1, length)),
            ops.reshape(inputs["mask"], (-1, length)),
            rematerialize,
        )
        return ops.reshape(hidden, (batch_size, num_samples, length, -1))

    def _policys_own(self, inputs):
        """`inputs` with the completions that the policy itself drew."""
        p = self.num_policy_samples
        own = {k: inputs[k][:, :p] for k in ("completion_ids", "mask")}
        return {**inputs, **own}

    def call(self, inputs):
        if "completion_ids" not in inputs:
            # Keras builds a model by calling it on a batch of its data, which
            # here are prompts still without completions.
            return {"log_probs": ops.zeros((inputs["prompt_ids"].shape[0], 0))}
        inputs = {name: inputs[name] for name in COMPLETIONS}
        return self.in_parts(self._read, inputs)

    def _read(self, inputs):
        """What `call` returns, of some prompts."""
        hidden = self._hidden(inputs, self.rematerialize)
        token_log_probs = self.head.token_log_probs(
            hidden, inputs["completion_ids"]
        )
        log_probs = formulas.sequence_log_probs(token_log_probs, inputs["mask"])
        return {
            "log_probs": log_probs,
            **self.more_outputs(inputs, hidden, token_log_probs),
        }

    def more_outputs(self, inputs, hidden, token_log_probs):
        """What else a child's loss wants to know about the completions."""
        return {}

    def targets(self, batch):
        """Decides what is learned from the rewards of a batch."""
        return batch

    def loss_terms(self, batch, outputs):
        """The terms of the loss, with their weights.

        Args:
            batch: dict of tensors, see `targets`.
            outputs: dict of tensors, what `call` returned.

        Returns:
            dict from each name of a term to `(weight, losses)`: a float, and a
            float tensor `(batch,)`.
        """
        raise NotImplementedError

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """The weighted sum of `loss_terms`, a mean over prompts with rewards.

        Args:
            x: dict of tensors, see `targets`.
            y: unused.
            y_pred: dict of tensors, what `call` returned.
            sample_weight: unused.
            training: unused.

        Returns:
            float32 scalar.
        """
        terms = self.loss_terms(x, y_pred)
        log_probs = y_pred["log_probs"][:, : self.num_policy_samples]
        values = metrics_lib.step_values(x, log_probs)
        values.update({name: losses for name, (_, losses) in terms.items()})
        metrics_lib.update(self.trackers, values, x)
        loss = sum(weight * losses for weight, losses in terms.values())
        loss = formulas.masked_mean(loss, x["valid"])
        # Where the loss is not finite no gradient is.
        is_good = ops.isfinite(ops.stop_gradient(loss))
        return loss * ops.where(is_good, 1.0, math.nan)

    def watched_weights(self):
        """Copies some weights, to see whether the update moves them."""
        return metrics_lib.watch(self.policy.trainable_variables)

    def after_update(self, batch, before, is_good):
        """Moves the anchor and the clocks; step 6 of algorithm 2.

        Args:
            batch: dict of tensors, what was learned from.
            before: what `watched_weights` returned before the update.
            is_good: bool scalar tensor. Whether the gradients were finite.

        Returns:
            dict of the logged numbers.
        """
        variables = self.policy.trainable_variables
        updated = self.anchor.follow(variables, self.optimizer.iterations)
        count = ops.sum(ops.cast(batch["present"], "int32"))
        self.prompts_seen.assign(self.prompts_seen + count)
        skipped = ops.cast(ops.logical_not(is_good), "int32")
        in_a_row = self.progress.skipped_in_a_row
        in_a_row.assign((in_a_row + 1) * skipped)
        self.trackers["train/skipped_steps"].update_state(skipped)
        self.trackers["train/updated_fraction"].update_state(
            metrics_lib.moved_fraction(variables, before),
            sample_weight=ops.cast(updated, "float32"),
        )
        return self.get_metrics_result()

    def set_anchor_rule(self, update_rate, every):
        """Sets how the anchor moves; see `keras_bond.callbacks.AnchorRule`."""
        self.anchor.set_rule(update_rate, every)

    def compile(self, optimizer="adam", **kwargs):
        super().compile(optimizer=optimizer, **kwargs)
        iterations = ops.convert_to_numpy(self.optimizer.iterations)
        self.anchor.updates_seen.assign(int(iterations))

    compile.__doc__ = PolicyTrainer.compile.__doc__

    def needs_other_prompts(self):
        """Whether the baseline of a prompt is made of the other prompts."""
        return False

    def check_batch(self, batches):
        """Refuses batches of one prompt where they leave no baseline."""
        if batches.num_batches is None or not self.needs_other_prompts():
            return
        if batches.prompts_per_batch < 2:
            raise ValueError(
                "A batch must have at least 2 prompts: the baseline of one is "
                "the mean of the OTHERS of the batch. Raise `batch_size`, or "
                'use `keras_bond.Bond(baseline="mixed")` with several policy '
                "samples a prompt. Received: batches of "
                f"{batches.prompts_per_batch} prompt"
            )

    def complete_callbacks(self, callbacks):
        """Adds the default anchor rule where the user gives none."""
        completed = anchor_rules.with_anchor_rule(
            callbacks,
            self.default_anchor_rule(),
            announce=not self._default_rule_announced,
        )
        self._default_rule_announced = True
        return completed

    def get_config(self):
        return {
            **super().get_config(),
            "num_policy_samples": self.num_policy_samples,
            "num_anchor_samples": self.num_anchor_samples,
            "reference": self.has_reference,
        }


def _stage_name(name, training):
    return name if training else f"evaluate {name}"
