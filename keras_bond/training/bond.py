"""BOND: distillation of the Best-of-N distribution of an anchor."""

import functools

import keras
from keras import ops

from keras_bond.arguments import check_count
from keras_bond.callbacks.anchor import AnchorRefresh
from keras_bond.formulas import jbond
from keras_bond.formulas import learned_quantiles
from keras_bond.formulas import policy_gradient
from keras_bond.training import checks
from keras_bond.training import estimators
from keras_bond.training import quantile_model
from keras_bond.training.anchored_trainer import AnchoredTrainer


@keras.saving.register_keras_serializable(package="keras_bond")
class Bond(AnchoredTrainer):
    """Distills Best-of-N sampling into a policy.

    This implements BOND (Sessa et al., ICLR 2025, arXiv 2407.14622): training
    minimizes the Jeffreys divergence between the policy and the Best-of-N
    distribution of an anchor, so that one sample of the policy becomes as good
    as the best of N. For each prompt, both KLs of the divergence are estimated
    from P samples of the policy and k samples of the anchor. With a fixed
    anchor (`callbacks.AnchorFixed`) the policy approaches the Best-of-N
    distribution of the initial policy. With a moving anchor the effective N
    grows during training: `AnchorRefresh`, which is iterative BOND (algorithm
    1), with a copy every 32 updates as the default, or `AnchorEMA`.

    The defaults performed best in our measurements, better than the paper's
    settings at an equal number of generated sequences: Best-of-2 of a moving
    anchor with 4 + 4 samples, all of which are used for both KLs. `JBond` is
    this class with the paper's settings; `jeffreys_beta=0` with
    `estimator="paper"` is supervised fine-tuning on the best of N samples
    (RAFT), and `jeffreys_beta=1` is vBoN.

    Args:
        policy: a `keras_hub.models.CausalLM` with a key-value cache, such as
            Gemma 3 or Gemma 4. Call `policy.backbone.enable_lora(rank)` BEFORE.
            Vision and audio encoders are frozen.
        reward: function `reward(prompts, completions, **columns)` that returns
            one number for each completion, where higher is better, or `None`
            if it cannot score a completion (the prompt is then masked out); or
            a Keras model or layer that scores token ids, see
            `keras_bond.rewards.ModelReward`; or a list of these.
        max_prompt_length: int. Maximum number of tokens in a prompt, including
            the start token.
        max_completion_length: int. Maximum number of tokens in a completion;
            longer ones are truncated.
        best_of_n: int, at least 2. The N to distill from the anchor. With a
            moving anchor 2 is enough, because the effective N multiplies as
            the anchor follows the policy. Denoted N in the paper. Defaults to
            2.
        num_policy_samples: int. Policy samples per prompt, denoted P above. 0
            with `jeffreys_beta=0`: the forward KL needs none, and what they
            tell is then not logged. Defaults to 4.
        num_anchor_samples: int. Anchor samples per prompt. Denoted k in the
            paper. If the data give completions, all of them are used instead,
            whatever their number. Defaults to 4.
        estimator: how the gradient is estimated:
            `"pooled"` uses all samples for both KLs, with balance-heuristic
            weights and harmonic quantiles (N = 2);
            `"control_variate"` weights every anchor sample by its probability
            of being the best of N, minus a control variate, and ranks the
            policy samples by harmonic quantiles;
            `"paper"` imitates the best of the first N anchor samples, with
            harmonic quantiles and the batch's mean return as the baseline;
            `"monte_carlo"` is `"paper"` with `log(c / k)` if a sample beats c
            of k anchor samples (eq. 10);
            `"jbond"` is `"paper"` with the `-log 16` rule of eq. 17 (N = 2);
            `"learned"` is `"control_variate"` with quantiles from a classifier
            on the policy's backbone that is trained along with the policy
            (eq. 25), for a fixed or slowly moving anchor. A fitted
            `keras_bond.QuantileModel`, or another Keras layer with the same
            inputs and outputs, is used instead of the classifier and frozen.
            `"auto"` is `"pooled"` if `best_of_n` is 2 and the policy is
            sampled, else `"control_variate"`. Defaults to `"auto"`. Equal
            rewards count as half a win, except that `"paper"` and `"jbond"`
            order them at random.
        jeffreys_beta: float in [0, 1]. Weight of the backward KL; the forward
            KL has weight `1 - jeffreys_beta`. Denoted β in the paper. Defaults
            to 0.5.
        kl_weight: float, at least 0. Weight of an additional KL to the anchor.
            Larger values keep the policy closer to the anchor and slow down
            training. Denoted γ in the paper. Defaults to 0.
        reward_weights: list of float, one for each reward if `reward` is a
            list.
        reference: bool or `"auto"`. Whether to keep the weights of the initial
            policy, so that `kl_ref`, the KL to the reference policy, is logged:
            each step then reads the policy's samples once more. `"auto"` keeps
            them if at most a tenth of the parameters is trainable, as with
            LoRA. Defaults to `"auto"`.
        temperature: float. Temperature of the samples and of their
            log-probabilities. Defaults to 1.
        prompt_buckets: tuple of int, increasing, ending with
            `max_prompt_length`. A batch is padded to the smallest bucket that
            fits its prompts. Shuffling keeps prompts of the same bucket
            together, and each length is compiled once. Defaults to `None`,
            which means `max_prompt_length` only.
        truncate: `None` to raise an error for prompts that are too long, or
            `"left"` to keep their end. Defaults to `None`.
        stop_token_ids: tuple of int, or `"auto"` for the tokenizer's end token
            and what ends a turn in the chat format. Defaults to `"auto"`.
        chat_template: how conversations are written: `"auto"` for the format
            whose special tokens the vocabulary has (Gemma, Gemma 4, Llama 3 or
            ChatML), a template in Jinja or the path of one, or a function, see
            `keras_bond.data.render_chat`. Defaults to `"auto"`.
        retokenize: bool. Whether a given completion whose text is not what its
            tokens say is accepted, as what they say. Defaults to `False`.
        seed: int in [0, 2³¹), or `None` to draw one. It determines all
            randomness of the trainer. The adapters of `enable_lora` are drawn
            before, by Keras: call `keras.utils.set_random_seed` first if two
            runs are to be the same.
        **kwargs: arguments of `keras.Model`, such as `name`.

    Raises:
        TypeError: if `policy` is not a KerasHub causal language model, or
            `reward` cannot score.
        ValueError: if an argument is out of range, the sample counts do not
            fit the estimator, nothing is trainable, or the reward shares
            trainable variables with the policy.

    Example:

    ```python
    policy = keras_hub.models.Gemma3CausalLM.from_preset("gemma3_instruct_1b")
    policy.backbone.enable_lora(8)

    bond = keras_bond.Bond(
        policy, my_reward, max_prompt_length=64, max_completion_length=64
    )
    bond.compile(optimizer=keras.optimizers.Adam(1e-3))
    bond.fit(prompts, batch_size=16, epochs=2)
    bond.policy.generate("What is best-of-n sampling?")
    ```
    """

    # Measured in docs/estimators.md, "Pace".
    default_anchor_rule = functools.partial(AnchorRefresh, 32)

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
        estimator="auto",
        jeffreys_beta=0.5,
        kl_weight=0.0,
        reward_weights=None,
        reference="auto",
        temperature=1.0,
        prompt_buckets=None,
        truncate=None,
        stop_token_ids="auto",
        chat_template="auto",
        retokenize=False,
        seed=None,
        **kwargs,
    ):
        checks.check_jeffreys_beta(jeffreys_beta)
        checks.check_strength("kl_weight", kl_weight)
        check_count("best_of_n", best_of_n, 2)
        checks.check_policy_samples(
            num_policy_samples,
            jeffreys_beta=jeffreys_beta,
            kl_weight=kl_weight,
        )
        check_count("num_anchor_samples", num_anchor_samples, 1)
        counts = (best_of_n, num_policy_samples, num_anchor_samples)
        recipe = estimators.get(estimator, *counts)
        names = ["forward_kl_loss"]
        if num_policy_samples:
            names += ["backward_kl_loss", "bond/penalized_fraction"]
        names += ["kl_loss"] * (kl_weight > 0)
        names += ["quantile_loss"] * (estimator == "learned")
        super().__init__(
            policy,
            reward,
            best_of_n=best_of_n,
            logged_names=names,
            num_policy_samples=num_policy_samples,
            num_anchor_samples=num_anchor_samples,
            reference=reference,
            reward_weights=reward_weights,
            max_prompt_length=max_prompt_length,
            max_completion_length=max_completion_length,
            prompt_buckets=prompt_buckets,
            truncate=truncate,
            stop_token_ids=stop_token_ids,
            chat_template=chat_template,
            retokenize=retokenize,
            temperature=temperature,
            seed=seed,
            **kwargs,
        )
        self.estimator = recipe
        self.jeffreys_beta = float(jeffreys_beta)
        self.kl_weight = float(kl_weight)
        self.learns_quantiles = estimator == "learned"
        self.quantile_model = None
        if isinstance(recipe, estimators.Learned):
            self.quantile_model = quantile_model.get(
                estimator, policy, self.seed
            )

    def targets(self, batch):
        """Turns rewards into the training targets of the estimator.

        Args:
            batch: dict of tensors, see `collect`.

        Returns:
            `batch`, extended by `penalized` bool `(batch, P)`, whether a
            policy sample is worse than all anchor samples, if the policy is
            sampled, and by the estimator's targets.
        """
        batch = {**batch, **self.estimator.targets(batch)}
        if not self.num_policy_samples:
            return batch
        policy, anchor = self.estimator.split(batch["ranks"])
        penalized = jbond.is_penalized(
            policy, anchor, self.estimator.split(batch["tie_breakers"])
        )
        return {**batch, "penalized": penalized}

    def more_outputs(self, inputs):
        if self.quantile_model is None:
            return {}
        logits = quantile_model.quantile_logits(
            self.quantile_model, inputs, self.stop_token_ids
        )
        return {"quantile_logits": logits}

    def loss_terms(self, batch, outputs):
        """`(1-β)·forward + β·backward + γ·KL`, line 5 of algorithm 2."""
        log_probs = outputs["log_probs"]
        log_ratios = ops.stop_gradient(log_probs - batch["anchor_log_probs"])
        forward = self.estimator.forward(batch, outputs, log_ratios)
        loss = policy_gradient.weighted_likelihood_loss
        beta = self.jeffreys_beta
        terms = {"forward_kl_loss": (1.0 - beta, loss(log_probs, forward))}
        if self.num_policy_samples:
            backward = self.estimator.backward(batch, outputs, log_ratios)
            terms["backward_kl_loss"] = (beta, loss(log_probs, backward))
        if self.kl_weight:
            losses = self._kl_losses(batch, log_probs, log_ratios)
            terms["kl_loss"] = (self.kl_weight, losses)
        if self.learns_quantiles:
            losses = learned_quantiles.quantile_loss(
                outputs["quantile_logits"], batch["quantile_labels"]
            )
            terms["quantile_loss"] = (1.0, losses)
        return terms

    def _kl_losses(self, batch, log_probs, log_ratios):
        """Score-function loss of `KL(π ‖ π_anchor)`, eq. 19."""
        p = self.num_policy_samples
        log_ratios = log_ratios[:, :p]
        if self.estimator.centers_kl:
            log_ratios = log_ratios - self.estimator.baseline(log_ratios, batch)
        return policy_gradient.score_function_kl_loss(
            log_probs[:, :p], log_ratios
        )

    def check_ready(self):
        super().check_ready()
        if self.quantile_model is not None and not self.learns_quantiles:
            quantile_model.check_trained(self.quantile_model)

    def needs_other_prompts(self):
        return self.jeffreys_beta > 0 and self.estimator.needs_other_prompts()

    def quantile_examples(self, prompts, num_samples=16, batch_size=None):
        """Draws training data for a `keras_bond.QuantileModel`.

        Args:
            prompts: list or array of str, or a dict of columns.
            num_samples: int, at least 2. Anchor samples per prompt.
            batch_size: int. Prompts per batch. Defaults to 32.

        Returns:
            `(inputs, labels)`: a dict of `token_ids` int32 and `padding_mask`
            bool arrays `(rows, length)`, and a float32 array `(rows, 2)` of
            estimated `p_le` and `p_lt`.
        """
        return quantile_model.draw_examples(
            self, prompts, num_samples, batch_size
        )

    def get_config(self):
        estimator = self.estimator.name
        if self.quantile_model is not None and not self.learns_quantiles:
            estimator = keras.saving.serialize_keras_object(self.quantile_model)
        return {
            **super().get_config(),
            "estimator": estimator,
            "jeffreys_beta": self.jeffreys_beta,
            "kl_weight": self.kl_weight,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config.get("estimator"), dict):
            config["estimator"] = keras.saving.deserialize_keras_object(
                config["estimator"]
            )
        return super().from_config(config)
