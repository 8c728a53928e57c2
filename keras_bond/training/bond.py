"""BOND: distils the Best-of-N law of an anchor into the policy."""

import dataclasses

import keras
from keras import ops

from keras_bond import formulas
from keras_bond.rollouts import sequences
from keras_bond.training import checks
from keras_bond.training import quantile_model
from keras_bond.training.anchored_trainer import AnchoredTrainer
from keras_bond.training.estimators import MODEL
from keras_bond.training.estimators import Estimators

PENALISED = "bond/penalised_fraction"
# What belongs to one sample of a prompt, and is dropped with it.
PER_SAMPLE = ("completion_ids", "mask", "anchor_log_probs", "quantile_labels")


@keras.saving.register_keras_serializable(package="keras_bond")
class Bond(AnchoredTrainer):
    """Trains a policy so that one sample is as good as the best of N.

    BOND (Sessa et al., ICLR 2025, arXiv 2407.14622): the policy descends the
    Jeffreys divergence to the Best-of-N law of an anchor. Both parts are
    estimated from P samples of the policy and k of the anchor a prompt. With
    an anchor that stays (`callbacks.AnchorFixed`) the policy becomes Best-of-N
    of its start; with one that follows (`AnchorEMA`, the default, or
    `AnchorRefresh`: iterative BOND, algorithm 1) N grows as training goes on.

    The defaults are the best that was measured, better than the paper's at an
    equal number of generated sequences: Best-of-2 of a moving anchor, 4 + 4
    samples, all of which serve both parts. `JBond` is this class with the
    paper's settings; `jeffreys_beta=0` with `forward="best_sample"` is
    supervised learning on Best-of-N picks (RAFT), `jeffreys_beta=1` is vBoN.

    Args:
        policy: a `keras_hub.models.CausalLM` with a key-value cache, such as
            Gemma or Gemma 3. Call `policy.backbone.enable_lora(rank)` BEFORE.
        reward: function `reward(prompts, completions, **columns)` that returns
            one number for each completion, higher is better, `None` for
            "cannot score" (the prompt then drops out of the batch); or a Keras
            model or layer that scores token ids, see
            `keras_bond.rewards.ModelReward`; or a list of these.
        max_prompt_length: int. Tokens in the longest prompt, start token
            included.
        max_completion_length: int. Tokens at which a completion is cut.
        best_of_n: int, at least 2. The N to distil from the anchor. With a
            moving anchor 2 is enough: rounds multiply. Denoted N in the paper.
            Defaults to 2.
        num_policy_samples: int. P above. Defaults to 4.
        num_anchor_samples: int. Denoted k in the paper. Defaults to 4.
        forward: which samples the forward part imitates:
            `"best_sample"`, the best of the first N anchor samples (paper);
            `"order_statistics"`, every anchor sample by its probability of
            being the best of N (unbiased, less variance, needs N <= k);
            `"control_variate"`, the same less a control variate: nothing
            drifts where all rewards tie;
            `"density_ratio"`, every anchor sample by `π_BoN / π_anchor` of the
            quantile model, for any N;
            `"pooled"`, all samples by balance-heuristic weights (N = 2).
            `"auto"`, the default, is `"pooled"` for N = 2, else
            `"control_variate"`.
        backward: which samples the backward part weighs: `"policy_samples"`
            (paper) or `"pooled"` (N = 2, harmonic, midrank, mixed). `"auto"`,
            the default, is `"pooled"` where that is possible.
        quantiles: how `log p_le` is estimated: `"harmonic"`, `H_c - H_k` for c
            of k anchor samples beaten, unbiased for a truncated series;
            `"pairs"`, J-BOND's `-log 16` rule (eq. 17) over all pairs;
            `"monte_carlo"`, `log(c / k)` (eq. 10); `"learned"`, a classifier
            on the policy's backbone trained beside it (eq. 25), for an anchor
            that stays or moves slowly; or a trained `keras_bond.QuantileModel`,
            or another Keras layer with its inputs and outputs, which is then
            frozen. Defaults to `"harmonic"`.
        ties: `"midrank"` counts a tie as half a win; `"random"` breaks ties
            at random; `"strict"` is the paper's rule, which hardly learns from
            rewards of few values. Defaults to `"midrank"`.
        baseline: `"batch"` (paper), `"prompt"` or `"mixed"`, see
            `keras_bond.formulas.baseline`. Defaults to `"mixed"`.
        jeffreys_beta: float in [0, 1]. Weight of the backward KL against the
            forward KL. Denoted β in the paper. Defaults to 0.5.
        kl_weight: float, at least 0. Weight of the additional KL to the
            anchor; larger is slower and keeps closer. Denoted γ in the paper.
            Defaults to 0.
        kl_estimator: how its gradient is estimated: `"log_ratio"`, the score
            function (eq. 19); `"centred_log_ratio"`, the same less the
            baseline; `"full_vocabulary"`, the exact KL of every next-token
            distribution, at the price of one more pass of the anchor. Defaults
            to `"centred_log_ratio"`.
        reward_weights: list of float, one for each reward of a list.
        reference: whether to keep the starting values, so that `kl_ref`, the
            KL to the start, is logged. `"auto"` keeps them where they cost
            little: where at most a tenth of the parameters is trained, as with
            LoRA. Defaults to `"auto"`.
        temperature: float. Of the samples and their log-probabilities alike.
            Defaults to 1.
        prompt_buckets: tuple of int, increasing, the last of them
            `max_prompt_length`. A batch is padded to the shortest that covers
            its prompts, and prompts of one bucket come together when they are
            shuffled; each length is compiled once. Defaults to `None`:
            `max_prompt_length` alone.
        truncate: `None` to refuse prompts that are too long, `"left"` to keep
            their end. Defaults to `None`.
        stop_token_ids: tuple of int, or `"auto"` for the tokenizer's end token
            and Gemma's end of turn. Defaults to `"auto"`.
        seed: int in [0, 2³¹), or `None` to draw one. All randomness of the run
            is a function of it.
        **kwargs: `name` and the like, for `keras.Model`.

    Raises:
        TypeError: if `policy` is no KerasHub causal language model, or
            `reward` is nothing that scores.
        ValueError: if an argument is out of its range, estimators do not go
            together, nothing is trainable, or the reward shares trainable
            variables with the policy.

    Example:

    ```python
    policy = keras_hub.models.Gemma3CausalLM.from_preset("gemma3_instruct_1b")
    policy.backbone.enable_lora(8)

    bond = keras_bond.Bond(
        policy, my_reward, max_prompt_length=64, max_completion_length=64
    )
    bond.compile(optimizer=keras.optimizers.Adam(3e-6))
    bond.fit(prompts, batch_size=16, epochs=2)
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
        best_of_n=2,
        num_policy_samples=4,
        num_anchor_samples=4,
        forward="auto",
        backward="auto",
        quantiles="harmonic",
        ties="midrank",
        baseline="mixed",
        jeffreys_beta=0.5,
        kl_weight=0.0,
        kl_estimator="centred_log_ratio",
        reward_weights=None,
        reference="auto",
        temperature=1.0,
        prompt_buckets=None,
        truncate=None,
        stop_token_ids="auto",
        seed=None,
        **kwargs,
    ):
        checks.check_weights(jeffreys_beta, kl_weight, temperature)
        estimators = Estimators(
            best_of_n=best_of_n,
            num_policy_samples=num_policy_samples,
            num_anchor_samples=num_anchor_samples,
            forward=forward,
            backward=backward,
            quantiles=quantiles if isinstance(quantiles, str) else MODEL,
            ties=ties,
            baseline=baseline,
            kl_estimator=kl_estimator,
        ).resolved()
        super().__init__(
            policy,
            reward,
            logged_names=_logged_names(kl_weight, estimators),
            num_policy_samples=num_policy_samples,
            num_anchor_samples=num_anchor_samples,
            reference=reference,
            reward_weights=reward_weights,
            max_prompt_length=max_prompt_length,
            max_completion_length=max_completion_length,
            prompt_buckets=prompt_buckets,
            truncate=truncate,
            stop_token_ids=stop_token_ids,
            temperature=temperature,
            seed=seed,
            **kwargs,
        )
        self.estimators = estimators
        self.jeffreys_beta = float(jeffreys_beta)
        self.kl_weight = float(kl_weight)
        self.quantile_model = None
        if estimators.uses_model:
            self.quantile_model = quantile_model.get(
                quantiles, policy, self.seed
            )

    def targets(self, batch):
        """Turns rewards into ranks, and ranks into what is learned.

        Args:
            batch: dict of tensors: prompts, rollout and rewards.

        Returns:
            `batch` with `penalised` bool `(batch, P)`, and what the estimators
            need; with `forward="best_sample"` the anchor samples are reduced
            to the one that is imitated.
        """
        choice, p = self.estimators, self.num_policy_samples
        mine, anchors = batch["rewards"][:, :p], batch["rewards"][:, p:]
        lots = batch["tie_breakers"][:, :p], batch["tie_breakers"][:, p:]
        if choice.ties == "strict":
            lots = None
        penalised = formulas.is_penalised(mine, anchors, lots)
        batch = {**batch, "penalised": penalised}
        if self.estimators.learns_quantiles:
            batch["quantile_labels"] = formulas.quantile_labels(
                batch["rewards"], p
            )
        if choice.needs_ranks:
            counts = formulas.count_beaten(
                mine, anchors, lots if choice.ties == "random" else None
            )
            table = choice.tie_table()
            batch["backward_rewards"] = formulas.look_up(table, *counts)
        if choice.forward in ("order_statistics", "control_variate"):
            batch["forward_weights"] = formulas.best_of_n_weights(
                anchors, choice.best_of_n
            )
        if choice.forward == "best_sample":
            return self._keep_best(batch, anchors, lots and lots[1])
        return batch

    def _keep_best(self, batch, anchor_rewards, lots):
        """Drops the anchor samples that are not imitated."""
        n, p = self.estimators.best_of_n, self.num_policy_samples
        best = formulas.best_sample(
            anchor_rewards[:, :n], None if lots is None else lots[:, :n]
        )
        mine = ops.tile(ops.arange(p, dtype="int32")[None], (best.shape[0], 1))
        best = ops.cast(best, "int32")[:, None] + p
        chosen = ops.concatenate([mine, best], axis=1)
        kept = {name: batch[name] for name in PER_SAMPLE if name in batch}
        return {**batch, **sequences.take_samples(kept, chosen)}

    def more_outputs(self, inputs, hidden, token_log_probs):
        outputs = {}
        if self.quantile_model is not None:
            outputs["quantile_logits"] = quantile_model.judge(
                self.quantile_model, inputs, self.stop_token_ids
            )
        if self.kl_weight and self.estimators.kl_estimator == "full_vocabulary":
            outputs["kl_losses"] = self._exact_kl_losses(
                inputs, hidden, token_log_probs
            )
        return outputs

    def _exact_kl_losses(self, inputs, hidden, token_log_probs):
        p = self.num_policy_samples
        mine = self._policys_own(inputs)
        with self.using("anchor"):
            anchor_hidden = self._hidden(mine)
        kls = self._token_kls(hidden[:, :p], anchor_hidden, "anchor", mine)
        return formulas.full_vocabulary_kl_loss(
            kls, token_log_probs[:, :p], mine["mask"]
        )

    def loss_terms(self, batch, outputs):
        """`(1-β)·forward + β·backward + γ·KL`, line 5 of algorithm 2."""
        log_probs, p = outputs["log_probs"], self.num_policy_samples
        log_ratios = ops.stop_gradient(log_probs - batch["anchor_log_probs"])
        forward = self._forward_coefficients(batch, outputs, log_ratios)
        backward = self._backward_coefficients(batch, outputs, log_ratios)
        loss = formulas.weighted_likelihood_loss
        beta = self.jeffreys_beta
        terms = {
            "forward_kl_loss": (1.0 - beta, loss(log_probs, forward)),
            "backward_kl_loss": (beta, loss(log_probs, backward)),
        }
        if self.kl_weight:
            losses = self._kl_losses(
                batch, outputs, log_probs[:, :p], log_ratios[:, :p]
            )
            terms["kl_loss"] = (self.kl_weight, losses)
        if self.estimators.learns_quantiles:
            losses = formulas.quantile_loss(
                outputs["quantile_logits"], batch["quantile_labels"]
            )
            terms["quantile_loss"] = (1.0, losses)
        return terms

    def _forward_coefficients(self, batch, outputs, log_ratios):
        kind, p = self.estimators.forward, self.num_policy_samples
        if kind == "pooled":
            return formulas.pooled_forward_coefficients(
                batch["rewards"], log_ratios, p
            )
        if kind == "best_sample":
            weights = ops.ones_like(log_ratios[:, p:])
        elif kind == "density_ratio":
            log_weights = self._log_best_of_n_ratio(outputs)[:, p:]
            weights = ops.exp(log_weights) / self.num_anchor_samples
        else:
            weights = batch["forward_weights"]
        if kind in ("control_variate", "density_ratio"):
            weights = formulas.control_variate_coefficients(
                weights, log_ratios[:, p:], batch["valid"]
            )
        return ops.pad(weights, [(0, 0), (p, 0)])

    def _backward_coefficients(self, batch, outputs, log_ratios):
        p = self.num_policy_samples
        if self.estimators.backward == "pooled":
            return formulas.pooled_backward_coefficients(
                batch["rewards"], log_ratios, p, batch["valid"]
            )
        if self.quantile_model is None:
            rewards = batch["backward_rewards"]
        else:
            rewards = self._log_best_of_n_ratio(outputs)[:, :p]
        returns = formulas.backward_returns(rewards, log_ratios[:, :p])
        advantages = returns - self._baseline(returns, batch)
        others = log_ratios.shape[1] - p
        return ops.pad(advantages / p, [(0, 0), (0, others)])

    def _baseline(self, values, batch):
        return formulas.baseline(
            values, batch["valid"], self.estimators.baseline
        )

    def _log_best_of_n_ratio(self, outputs):
        log_p = ops.log_sigmoid(ops.stop_gradient(outputs["quantile_logits"]))
        return formulas.log_best_of_n_ratio(
            log_p[:, :, 0], log_p[:, :, 1], self.estimators.best_of_n
        )

    def _kl_losses(self, batch, outputs, log_probs, log_ratios):
        kind = self.estimators.kl_estimator
        if kind == "full_vocabulary":
            return ops.mean(outputs["kl_losses"], axis=1)
        if kind == "centred_log_ratio":
            log_ratios = log_ratios - self._baseline(log_ratios, batch)
        return formulas.score_function_kl_loss(log_probs, log_ratios)

    def check_ready(self):
        super().check_ready()
        if self.estimators.quantiles == MODEL:
            quantile_model.check_trained(self.quantile_model)

    def needs_other_prompts(self):
        return self.jeffreys_beta > 0 and self.estimators.needs_other_prompts

    def quantile_examples(self, prompts, num_samples=16, batch_size=None):
        """Draws what a `keras_bond.QuantileModel` is fitted to.

        Args:
            prompts: list or array of str, or a dict of columns.
            num_samples: int, at least 2. Anchor samples a prompt.
            batch_size: int. Prompts at a time. Defaults to 32.

        Returns:
            `(inputs, labels)`: a dict of `token_ids` int32 and `padding_mask`
            bool arrays `(rows, length)`, and a float32 array `(rows, 2)` of
            estimated `p_le` and `p_lt`.
        """
        return quantile_model.draw_examples(
            self, prompts, num_samples, batch_size
        )

    def get_config(self):
        config = {
            **super().get_config(),
            **dataclasses.asdict(self.estimators),
            "jeffreys_beta": self.jeffreys_beta,
            "kl_weight": self.kl_weight,
        }
        if self.estimators.quantiles == MODEL:
            config["quantiles"] = keras.saving.serialize_keras_object(
                self.quantile_model
            )
        return config

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config.get("quantiles"), dict):
            config["quantiles"] = keras.saving.deserialize_keras_object(
                config["quantiles"]
            )
        return super().from_config(config)


def _logged_names(kl_weight, estimators):
    names = ["forward_kl_loss", "backward_kl_loss", PENALISED]
    if kl_weight:
        names.append("kl_loss")
    if estimators.learns_quantiles:
        names.append("quantile_loss")
    return names
