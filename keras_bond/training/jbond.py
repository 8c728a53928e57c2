"""J-BOND: Best-of-N distillation with a moving anchor."""

import keras

from keras_bond.training.bond import Bond

PAPER_SETTINGS = {
    "best_of_n": 2,
    "num_policy_samples": 1,
    "num_anchor_samples": 2,
    "forward": "best_sample",
    "backward": "policy_samples",
    "quantiles": "pairs",
    "baseline": "batch",
    "kl_estimator": "log_ratio",
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

    It is `keras_bond.Bond` with the paper's settings, which learns more from
    each generated token with its own. Policy, anchor and reference are three
    sets of values for ONE network; with LoRA only the adapters exist more than
    once. The policy stays an ordinary KerasHub model:
    `bond.policy.generate(...)`.

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
            `"midrank"` counts them as half a win; `"strict"` is the paper's
            rule, which hardly learns from rewards of few values. Defaults to
            `"random"`.
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
            reward_weights=reward_weights,
            jeffreys_beta=jeffreys_beta,
            kl_weight=kl_weight,
            ties=ties,
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
