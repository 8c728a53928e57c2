"""J-BOND: Best-of-N distillation with a moving anchor."""

import keras

from keras_bond.training.bond import Bond

PAPER_SETTINGS = {
    "best_of_n": 2,
    "num_policy_samples": 1,
    "num_anchor_samples": 2,
    "estimator": "jbond",
}


@keras.saving.register_keras_serializable(package="keras_bond")
class JBond(Bond):
    """Trains a policy as J-BOND does, algorithm 2 of the paper.

    BOND (Sessa et al., ICLR 2025, arXiv 2407.14622). For each prompt of a
    batch it draws 1 completion of the policy and 2 of the anchor, a slowly
    moving average of the policy; imitates the better anchor sample (forward
    KL), pushes the policy away from samples worse than both (backward KL), and
    mixes the two: the Jeffreys divergence to the anchor's Best-of-2. As the
    anchor follows, N grows with every step. Use it to turn N times the cost of
    Best-of-N sampling into one training run.

    It is `keras_bond.Bond` with the paper's numbers, which are fixed here:
    `best_of_n=2`, `num_policy_samples=1`, `num_anchor_samples=2` and
    `estimator="jbond"`: one anchor sample is imitated, the backward reward is
    `-log 16` or 0 (eq. 17), the baseline is the mean return of the other
    prompts, and equal rewards are ordered at random. `Bond` with its own
    defaults learns more from each generated token. All other arguments, the
    errors and what `fit` logs are those of `Bond`.

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
        jeffreys_beta=0.5,
        kl_weight=0.0,
        reward_weights=None,
        reference="auto",
        temperature=1.0,
        prompt_buckets=None,
        truncate=None,
        stop_token_ids="auto",
        seed=None,
        **kwargs,
    ):
        super().__init__(
            policy,
            reward,
            max_prompt_length=max_prompt_length,
            max_completion_length=max_completion_length,
            jeffreys_beta=jeffreys_beta,
            kl_weight=kl_weight,
            reward_weights=reward_weights,
            reference=reference,
            temperature=temperature,
            prompt_buckets=prompt_buckets,
            truncate=truncate,
            stop_token_ids=stop_token_ids,
            seed=seed,
            **PAPER_SETTINGS,
            **kwargs,
        )

    def get_config(self):
        config = super().get_config()
        return {k: v for k, v in config.items() if k not in PAPER_SETTINGS}
