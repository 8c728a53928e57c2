"""J-BOND: Best-of-N distillation with a moving anchor."""

import keras

from keras_bond.callbacks.anchor import AnchorEMA
from keras_bond.training.bond import Bond

PAPER_SETTINGS = {
    "best_of_n": 2,
    "num_policy_samples": 1,
    "num_anchor_samples": 2,
    "estimator": "jbond",
}


@keras.saving.register_keras_serializable(package="keras_bond")
class JBond(Bond):
    """J-BOND, algorithm 2 of the BOND paper.

    See Sessa et al., ICLR 2025, arXiv 2407.14622. For each prompt of a batch,
    the trainer draws 1 completion from the policy and 2 from the anchor, a
    slowly moving average of the policy. The loss imitates the better anchor
    sample (forward KL) and pushes the policy away from samples that are worse
    than both (backward KL). Together they estimate the Jeffreys divergence to
    the anchor's Best-of-2 distribution. The effective N grows with every step,
    because the anchor follows the policy. Use it to replace Best-of-N
    sampling, which costs N samples per answer, by a single training run.

    This is `keras_bond.Bond` with the paper's settings, which are fixed:
    `best_of_n=2`, `num_policy_samples=1`, `num_anchor_samples=2` and
    `estimator="jbond"`. One anchor sample is imitated, the backward reward is
    `-log 16` or 0 (eq. 17), the baseline is the mean return of the other
    prompts, and equal rewards are ordered at random. `Bond` with its own
    defaults learns more from each generated token. All other arguments, the
    errors and the logged values are those of `Bond`.

    Example:

    ```python
    policy = keras_hub.models.Gemma3CausalLM.from_preset("gemma3_instruct_1b")
    policy.backbone.enable_lora(8)

    def brevity(prompts, completions, **columns):
        return [-len(completion) for completion in completions]

    bond = keras_bond.JBond(
        policy, brevity, max_prompt_length=64, max_completion_length=64
    )
    bond.compile(optimizer=keras.optimizers.Adam(1e-3))
    bond.fit(prompts, batch_size=32, epochs=2)
    bond.policy.generate("What is best-of-n sampling?")
    ```
    """

    default_anchor_rule = AnchorEMA

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
        chat_template="auto",
        retokenize=False,
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
            chat_template=chat_template,
            retokenize=retokenize,
            seed=seed,
            **PAPER_SETTINGS,
            **kwargs,
        )

    def get_config(self):
        config = super().get_config()
        return {k: v for k, v in config.items() if k not in PAPER_SETTINGS}
