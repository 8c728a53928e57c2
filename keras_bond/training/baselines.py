"""Baselines for BOND: REINFORCE and BoNBoN.

Sampling, rewards, optimizer, data and logging are the same as in
`keras_bond.Bond`; only `loss_terms` differs.
"""

import keras

from keras_bond.arguments import check_count
from keras_bond.callbacks import AnchorFixed
from keras_bond.formulas import averages
from keras_bond.formulas import forward_kl
from keras_bond.formulas import other_methods
from keras_bond.formulas import policy_gradient
from keras_bond.training import checks
from keras_bond.training.anchored_trainer import AnchoredTrainer


@keras.saving.register_keras_serializable(package="keras_bond")
class Reinforce(AnchoredTrainer):
    """KL-regularized REINFORCE, the baseline of the paper's figure 7.

    It maximizes `E[r(y)] - β_RL KL(π ‖ π_ref)` with the score-function
    estimator and a leave-one-out baseline (BOND, Sessa et al., ICLR 2025, arXiv
    2407.14622, section 6; RLOO, Ahmadian et al., 2024, arXiv 2402.14740).
    Unlike BOND, it depends on the scale of the reward.

    Args:
        policy, reward, max_prompt_length, max_completion_length: see
            `keras_bond.Bond`.
        kl_weight: float, at least 0. Denoted β_RL in the paper, which uses
            0.001 to 1. Defaults to 0.1.
        num_policy_samples: int. Completions per prompt. Defaults to 2.
        baseline: `"batch"`, `"prompt"` or `"mixed"`, see
            `keras_bond.formulas.baseline`. Defaults to `"prompt"`.
        **kwargs: further arguments of `keras_bond.Bond`: `reference`,
            `temperature`, `seed` and the like.

    Example:

    ```python
    trainer = keras_bond.Reinforce(
        policy, reward, kl_weight=0.1, max_prompt_length=64,
        max_completion_length=64,
    )
    trainer.compile(keras.optimizers.Adam(3e-6))
    trainer.fit(prompts, batch_size=32)
    ```
    """

    default_anchor_rule = AnchorFixed

    def __init__(
        self,
        policy,
        reward,
        *,
        kl_weight=0.1,
        num_policy_samples=2,
        baseline="prompt",
        **kwargs,
    ):
        checks.check_strength("kl_weight", kl_weight)
        checks.check_one_of("baseline", baseline, averages.BASELINES)
        check_count(
            "num_policy_samples",
            num_policy_samples,
            2 if baseline == "prompt" else 1,
        )
        super().__init__(
            policy,
            reward,
            num_policy_samples=num_policy_samples,
            num_anchor_samples=0,
            logged_names=["policy_loss"],
            **kwargs,
        )
        self.kl_weight = float(kl_weight)
        self.baseline = baseline

    def needs_other_prompts(self):
        return self.baseline == "batch" or self.num_policy_samples == 1

    def loss_terms(self, batch, outputs):
        """`-mean_i log π(y_i) · sg(R_i - B_i)`."""
        log_probs = outputs["log_probs"]
        rewards = averages.centered(
            batch["rewards"], batch["reward_residuals"], batch["valid"]
        )
        returns = other_methods.reinforce_returns(
            rewards,
            log_probs - batch["anchor_log_probs"],
            self.kl_weight,
        )
        advantages = returns - averages.baseline(
            returns, batch["valid"], self.baseline
        )
        losses = policy_gradient.weighted_likelihood_loss(
            log_probs, advantages / self.num_policy_samples
        )
        return {"policy_loss": (1.0, losses)}

    def get_config(self):
        config = super().get_config()
        for name in ("best_of_n", "num_anchor_samples", "retokenize"):
            del config[name]
        return {
            **config,
            "kl_weight": self.kl_weight,
            "baseline": self.baseline,
        }


@keras.saving.register_keras_serializable(package="keras_bond")
class BoNBoN(AnchoredTrainer):
    """BoNBoN, which imitates the best and contrasts it with the worst of N.

    The loss is `α · (-log π(best)) + (1-α) · (Δ - margin)²` on N samples of the
    reference (Gui et al., NeurIPS 2024, arXiv 2406.00832). `Δ` is the
    log-likelihood ratio of the best over the worst sample, and the margin is
    its value under the Best-of-N distribution. Samples of the policy are drawn
    for logging only.

    Args:
        policy, reward, max_prompt_length, max_completion_length: see
            `keras_bond.Bond`.
        best_of_n: int, at least 2. Samples of the reference per prompt.
            Defaults to 8.
        sft_weight: float in [0, 1]. Denoted α in that paper. Defaults to 0.5.
        num_policy_samples: int. Completions of the policy per prompt, 0 for
            none. Defaults to 1.
        **kwargs: further arguments of `keras_bond.Bond`: `reference`,
            `temperature`, `seed` and the like.

    Example:

    ```python
    trainer = keras_bond.BoNBoN(
        policy, reward, best_of_n=8, max_prompt_length=64,
        max_completion_length=64,
    )
    trainer.compile(keras.optimizers.Adam(3e-6))
    trainer.fit(prompts, batch_size=32)
    ```
    """

    default_anchor_rule = AnchorFixed

    def __init__(
        self,
        policy,
        reward,
        *,
        best_of_n=8,
        sft_weight=0.5,
        num_policy_samples=1,
        **kwargs,
    ):
        check_count("best_of_n", best_of_n, 2)
        checks.check_share("sft_weight", sft_weight)
        super().__init__(
            policy,
            reward,
            best_of_n=best_of_n,
            num_policy_samples=num_policy_samples,
            num_anchor_samples=best_of_n,
            logged_names=["sft_loss", "contrast_loss"],
            **kwargs,
        )
        self.sft_weight = float(sft_weight)

    def loss_terms(self, batch, outputs):
        """`α·SFT + (1-α)·IPO`, both on the anchor's samples."""
        p, n = self.num_policy_samples, self.best_of_n
        log_probs = outputs["log_probs"][:, p:]
        log_ratios = log_probs - batch["anchor_log_probs"][:, p:]
        ranks = batch["ranks"][:, p:]
        tie_breakers = batch["tie_breakers"][:, p:]
        best = forward_kl.best_sample_weights(ranks, n, tie_breakers)
        # Reversing the tie-breakers makes best and worst differ in all ties.
        worst = forward_kl.best_sample_weights(-ranks, n, 1.0 - tie_breakers)
        contrast = other_methods.bonbon_contrast_coefficients(
            best, worst, log_ratios
        )
        loss = policy_gradient.weighted_likelihood_loss
        return {
            "sft_loss": (self.sft_weight, loss(log_probs, best)),
            "contrast_loss": (
                1.0 - self.sft_weight,
                loss(log_probs, contrast),
            ),
        }

    def get_config(self):
        config = super().get_config()
        del config["num_anchor_samples"]
        return {**config, "sft_weight": self.sft_weight}
