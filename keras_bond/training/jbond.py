"""J-BOND: Best-of-N distillation with a moving anchor."""

import math

import keras
from keras import ops

from keras_bond import formulas
from keras_bond import rollouts
from keras_bond.callbacks.anchor import with_anchor_rule
from keras_bond.rollouts import sequences
from keras_bond.training import checks
from keras_bond.training import metrics as metrics_lib
from keras_bond.training.policy_trainer import PolicyTrainer
from keras_bond.training.weight_sets import Anchor
from keras_bond.training.weight_sets import WeightSet

NUM_ANCHOR_SAMPLES = 2
# Where the trained values are at most this share, a reference costs nothing.
FREE_REFERENCE_SHARE = 0.1


@keras.saving.register_keras_serializable(package="keras_bond")
class JBond(PolicyTrainer):
    """Trains a policy so that one sample is as good as the best of several.

    J-BOND, algorithm 2 of BOND (Sessa et al., ICLR 2025, arXiv 2407.14622).
    For each prompt of a batch it draws 1 completion of the policy and 2 of the
    anchor, a slowly moving average of the policy; imitates the better anchor
    sample (forward KL), pushes the policy away from samples worse than both
    (backward KL), and mixes the two: the Jeffreys divergence to the
    anchor's Best-of-2. As the anchor follows, N grows with every step. Use it
    to turn N times the cost of Best-of-N sampling into one training run.

    Policy, anchor and reference are three sets of values for ONE network;
    with LoRA only the adapters exist more than once. The policy stays an
    ordinary KerasHub model: `bond.policy.generate(...)`.

    Args:
        policy: a `keras_hub.models.CausalLM` with a key-value cache, such as
            Gemma or Gemma 3. Call `policy.backbone.enable_lora(rank)` BEFORE.
        reward: function `reward(prompts, completions, **columns)` that returns
            one number for each completion, higher is better, `None` for
            "cannot score" (the prompt then drops out of the batch); or a Keras
            model or layer that scores token ids, see
            `keras_bond.rewards.ModelReward`; or a list of these.
        reward_weights: list of float, one for each reward of a list.
        max_prompt_length: int. Tokens in the longest prompt, start token
            included.
        max_completion_length: int. Tokens at which a completion is cut.
        jeffreys_beta: float in [0, 1]. Weight of the backward KL against the
            forward KL. Denoted β in the paper. Defaults to 0.5.
        kl_weight: float, at least 0. Weight of the additional KL to the
            anchor; larger is slower and keeps closer. Denoted γ in the paper.
            Defaults to 0.
        ties: `"random"` breaks ties of rewards at random, as theorem 1 needs;
            `"strict"` is the paper's rule, which hardly learns from rewards
            of few values. Defaults to `"random"`.
        reference: whether to keep the starting values, so that `kl_ref`, the
            KL to the start, is logged. `"auto"` keeps them where they cost
            little: where at most a tenth of the parameters is trained, as with
            LoRA. Defaults to `"auto"`.
        temperature: float. Of the samples and their log-probabilities alike.
            Defaults to 1.
        truncate: `None` to refuse prompts that are too long, `"left"` to keep
            their end. Defaults to `None`.
        stop_token_ids: tuple of int, or `"auto"` for the tokenizer's end token
            and Gemma's end of turn. Defaults to `"auto"`.
        seed: int in [0, 2³¹), or `None` to draw one. All randomness of the run
            is a function of it.
        **kwargs: `name` and the like, for `keras.Model`.

    Call arguments:
        inputs: dict with `prompt_ids` int32 `(batch, max_prompt_length)`,
            `prompt_lengths` int32 `(batch,)`, and `completion_ids` int32 and
            `mask` bool `(batch, samples, max_completion_length)`.

    Returns of a call:
        float32 tensor `(batch, samples)`: `log π(y|x)`, in nats.

    Raises:
        TypeError: if `policy` is no KerasHub causal language model, or
            `reward` is nothing that scores.
        ValueError: if an argument is out of its range, nothing is trainable,
            or the reward shares trainable variables with the policy.

    Example:

    ```python
    policy = keras_hub.models.Gemma3CausalLM.from_preset("gemma3_instruct_1b")
    policy.backbone.enable_lora(8)

    def brevity(prompts, completions, **columns):
        return [-len(completion) for completion in completions]

    bond = keras_bond.JBond(
        policy, brevity, max_prompt_length=64, max_completion_length=64
    )
    bond.compile(optimizer=keras.optimizers.Adam(3e-6))
    bond.fit(prompts, batch_size=32, epochs=2)
    bond.policy.generate("What is best-of-n sampling?")
    ```
    """

    def __init__(
        self,
        policy,
        reward,
        *,
        max_prompt_length,
        max_completion_length,
        reward_weights=None,
        jeffreys_beta=0.5,
        kl_weight=0.0,
        ties="random",
        reference="auto",
        temperature=1.0,
        truncate=None,
        stop_token_ids="auto",
        seed=None,
        **kwargs,
    ):
        checks.check_weights(jeffreys_beta, kl_weight, temperature)
        checks.check_one_of("ties", ties, ("random", "strict"))
        checks.check_one_of("reference", reference, ("auto", True, False))
        super().__init__(
            policy,
            reward,
            reward_weights=reward_weights,
            max_prompt_length=max_prompt_length,
            max_completion_length=max_completion_length,
            truncate=truncate,
            stop_token_ids=stop_token_ids,
            temperature=temperature,
            seed=seed,
            **kwargs,
        )
        self.jeffreys_beta = float(jeffreys_beta)
        self.kl_weight = float(kl_weight)
        self.ties = ties
        self.anchor = Anchor(policy.trainable_variables)
        self.weight_sets = {"anchor": self.anchor}
        if reference == "auto":
            reference = _trained_share(policy) <= FREE_REFERENCE_SHARE
        self.has_reference = reference
        if reference:
            self.reference = WeightSet(policy.trainable_variables, "reference")
            self.weight_sets["reference"] = self.reference
        self.trackers = metrics_lib.make_trackers(reference)
        self._default_rule_announced = False

    def rollout(self, inputs, training):
        """Draws one policy and two anchor samples for each prompt.

        Steps 1 to 3 of algorithm 2 up to the rewards; nothing here has a
        gradient.

        Args:
            inputs: dict of int32 tensors: `prompt_ids` `(batch,
                max_prompt_length)`, `prompt_lengths` and `rows` `(batch,)`.
            training: bool. In training the draws depend on how many prompts
                were seen before, in evaluation on the row numbers.

        Returns:
            dict of tensors: over `(batch, 3)`, the policy's sample first,
            `completion_ids`, `mask`, `terminated`, `token_ids`, `padding_mask`
            and `tie_breakers`; over `(batch,)`, for the policy's sample,
            `entropies`, `anchor_log_probs` and, with a reference,
            `reference_log_probs`.
        """
        prompts = inputs["prompt_ids"], inputs["prompt_lengths"]
        uniforms = self._uniforms(inputs["rows"], training)
        mine = self.decoder(*prompts, uniforms["policy"])
        with self.using("anchor"):
            theirs = self.decoder(*prompts, uniforms["anchor"])
        completion_ids = ops.concatenate(
            [mine["completion_ids"], theirs["completion_ids"]], axis=1
        )
        rollout = {
            **sequences.lay_out(*prompts, completion_ids, self.stop_token_ids),
            "tie_breakers": uniforms["ties"][:, :, 0],
            "entropies": mine["entropies"][:, 0],
        }
        for name in self.weight_sets:
            with self.using(name):
                log_probs = self._log_probs(
                    *prompts,
                    completion_ids[:, 0],
                    rollout["mask"][:, 0],
                )
            rollout[f"{name}_log_probs"] = log_probs
        return rollout

    def _uniforms(self, rows, training):
        prefix = "" if training else "evaluate "
        if training:
            offsets = ops.arange(rows.shape[0], dtype="int32")
            rows = ops.convert_to_tensor(self.prompts_seen) + offsets

        def uniform(purpose, num_samples, num_positions):
            return rollouts.uniform(
                self.seed, prefix + purpose, rows, num_samples, num_positions
            )

        length = self.max_completion_length
        return {
            "policy": uniform("policy", 1, length),
            "anchor": uniform("anchor", NUM_ANCHOR_SAMPLES, length),
            "ties": uniform("ties", 1 + NUM_ANCHOR_SAMPLES, 1),
        }

    def _log_probs(self, prompt_ids, prompt_lengths, completion_ids, mask):
        return rollouts.completion_log_probs(
            self.policy,
            prompt_ids,
            prompt_lengths,
            completion_ids,
            mask,
            self.temperature,
        )

    def targets(self, batch):
        """Decides what is imitated and what is penalised.

        Args:
            batch: dict of tensors: prompts, rollout and rewards.

        Returns:
            `batch` with `completion_ids` and `mask` reduced to `(batch, 2,
            max_completion_length)`, the policy's sample and the better one of
            the anchor's, and with `penalised` bool `(batch,)`.
        """
        rewards, draws = batch["rewards"], batch["tie_breakers"]
        tie_breakers = (None, None)
        if self.ties == "random":
            tie_breakers = draws[:, 0], draws[:, 1:]
        penalised = formulas.is_penalised(
            rewards[:, 0], rewards[:, 1:], *tie_breakers
        )
        best = formulas.best_sample(rewards[:, 1:], tie_breakers[1])
        chosen = ops.stack([ops.zeros_like(best), best + 1], axis=1)
        chosen = ops.cast(chosen, "int32")[:, :, None]
        return {
            **batch,
            "penalised": penalised,
            "completion_ids": ops.take_along_axis(
                batch["completion_ids"], chosen, axis=1
            ),
            "mask": ops.take_along_axis(batch["mask"], chosen, axis=1),
        }

    def call(self, inputs):
        if "completion_ids" not in inputs:
            # Keras builds a model by calling it on a batch of its data, which
            # here are prompts still without completions.
            return ops.zeros((inputs["prompt_ids"].shape[0], 0))
        num_samples = inputs["completion_ids"].shape[1]
        length = inputs["completion_ids"].shape[2]
        log_probs = self._log_probs(
            sequences.repeat_rows(inputs["prompt_ids"], num_samples),
            sequences.repeat_rows(inputs["prompt_lengths"], num_samples),
            ops.reshape(inputs["completion_ids"], (-1, length)),
            ops.reshape(inputs["mask"], (-1, length)),
        )
        return ops.reshape(log_probs, (-1, num_samples))

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """The loss of algorithm 2, a mean over the prompts with rewards.

        Args:
            x: dict of tensors, see `targets`.
            y: unused.
            y_pred: float32 tensor `(batch, 2)`: log-probabilities of the
                policy's sample and of the better anchor sample.
            sample_weight: unused.
            training: unused.

        Returns:
            float32 scalar.
        """
        log_probs, best_log_probs = y_pred[:, 0], y_pred[:, 1]
        valid, anchor_log_probs = x["valid"], x["anchor_log_probs"]
        returns = formulas.jbond_returns(
            formulas.jbond_reward(x["penalised"]), log_probs, anchor_log_probs
        )
        baseline = formulas.leave_one_out_mean(returns, valid)
        forward = formulas.forward_kl_loss(best_log_probs)
        backward = formulas.policy_gradient_loss(log_probs, returns - baseline)
        regulariser = formulas.score_function_kl_loss(
            log_probs, anchor_log_probs
        )
        values = metrics_lib.step_values(x, log_probs)
        values["forward_kl_loss"] = forward
        values["backward_kl_loss"] = backward
        metrics_lib.update(self.trackers, values, valid)
        loss = formulas.jeffreys_loss(
            forward, backward, regulariser, self.jeffreys_beta, self.kl_weight
        )
        return formulas.masked_mean(loss, valid)

    def watched_weights(self):
        """Copies some weights, to see whether the update moves them."""
        return metrics_lib.watch(self.policy.trainable_variables)

    def after_update(self, batch, before):
        """Moves the anchor and the clocks; step 6 of algorithm 2.

        Args:
            batch: dict of tensors, what was learned from.
            before: what `watched_weights` returned before the update.

        Returns:
            dict of the logged numbers.
        """
        variables = self.policy.trainable_variables
        updated = self.anchor.follow(variables, self.optimizer.iterations)
        count = ops.sum(ops.cast(batch["present"], "int32"))
        self.prompts_seen.assign(self.prompts_seen + count)
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

    def check_batch(self, batches):
        """Refuses batches of one prompt, which leave no baseline."""
        if batches.num_batches is None or self.jeffreys_beta == 0:
            return
        if batches.prompts_per_batch < 2:
            raise ValueError(
                "A batch must have at least 2 prompts: the baseline of the "
                "backward KL is the mean of the OTHERS of the batch. Raise "
                "`batch_size`, or set `jeffreys_beta=0`. Received: batches of "
                f"{batches.prompts_per_batch} prompt"
            )

    def complete_callbacks(self, callbacks):
        """Adds the paper's anchor rule where the user gives none."""
        completed = with_anchor_rule(
            callbacks, announce=not self._default_rule_announced
        )
        self._default_rule_announced = True
        return completed

    def get_config(self):
        return {
            **super().get_config(),
            "jeffreys_beta": self.jeffreys_beta,
            "kl_weight": self.kl_weight,
            "ties": self.ties,
            "reference": self.has_reference,
        }


def _trained_share(policy):
    trained = sum(math.prod(v.shape) for v in policy.trainable_variables)
    return trained / policy.count_params()
