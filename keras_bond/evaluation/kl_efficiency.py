"""How much of the KL that a policy spends buys reward."""

import dataclasses
import math

import numpy as np

from keras_bond import formulas
from keras_bond.evaluation.bootstrap import Estimate
from keras_bond.evaluation.bootstrap import bootstrap
from keras_bond.evaluation.checks import as_numpy
from keras_bond.evaluation.checks import as_paired_rewards
from keras_bond.evaluation.effective_n import log_quantile_meter


@dataclasses.dataclass(frozen=True)
class KLEfficiency:
    """What a policy's KL to its start bought.

    Attributes:
        effective_n: `Estimate`. N̂, see `effective_n`.
        kl: `Estimate`. Measured KL to the start, in nats.
        waste: `Estimate`. KL that bought nothing, in nats; 0 on the Best-of-N
            curve. It is the KL of the policy to Best-of-N̂.
        efficiency: `Estimate`. Share of the KL that was needed; 1 on the
            Best-of-N curve. NaN where the KL is not above 0.
    """

    effective_n: Estimate
    kl: Estimate
    waste: Estimate
    efficiency: Estimate


def kl_efficiency(
    rewards,
    reference_rewards,
    kl,
    confidence=0.95,
    num_resamples=1000,
    seed=0,
):
    """Compares the KL of a policy with the least KL for its quantiles.

    For ANY policy π, with u its quantiles under the start and
    `N̂ = -1 / E[log u]`,

        `KL(π ‖ π_ref) = [log N̂ - (N̂-1)/N̂] + KL(π ‖ π_BoN̂)`.

    The bracket is the least KL that reaches these quantiles, and the rest is
    waste. With ties, broken at random, the bracket is still a lower bound.

    N̂ is estimated as by `effective_n`: the smaller the pool, the rougher off
    the curve. A pool of k samples a prompt may make the bracket too large, for
    N̂ above 1 by at most 0.014 nats for k = 2, 0.003 for k = 8 and 0.0013 for
    k = 16. Of a policy that is worse than its start it says nothing.

    Args:
        rewards: float array `(prompts, samples)`, of the policy.
        reference_rewards: float array `(prompts, pool)`, of independent
            samples of the start for the same prompts; 16 or more.
        kl: float array `(prompts,)`: for each prompt the measured KL of the
            policy to its start, in nats a sequence, such as the mean of
            `log π(y) - log π_ref(y)` over samples of the policy. A single
            float counts as known exactly, and the intervals get too short.
        confidence: float in (0, 1). Of each interval. Defaults to 0.95.
        num_resamples: int. Times the prompts are drawn again, with
            replacement. Defaults to 1000.
        seed: int. Of these draws. Defaults to 0.

    Returns:
        `KLEfficiency`.

    Raises:
        ValueError: if the prompts are fewer than 2 or not as many, a reward
            or KL is not finite, there are fewer than 2 samples of the start a
            prompt, or an argument is out of range.
    """
    rewards, reference_rewards = as_paired_rewards(
        rewards, reference_rewards, "reference_rewards"
    )
    harmonic, to_n = log_quantile_meter(rewards, reference_rewards)
    per_prompt = np.stack([harmonic, _as_kl(kl, len(rewards))], axis=1)

    def statistic(mean_harmonic, mean_kl):
        n = to_n(mean_harmonic)
        least = formulas.continuous_best_of_n_kl(n)
        efficiency = least / mean_kl if mean_kl > 0 else math.nan
        return n, mean_kl, mean_kl - least, efficiency

    return KLEfficiency(
        *bootstrap(statistic, per_prompt, confidence, num_resamples, seed)
    )


def _as_kl(kl, prompts):
    array = as_numpy(kl).astype("float64")
    if array.shape not in ((), (prompts,)) or not np.isfinite(array).all():
        raise ValueError(
            "`kl` must be one finite number, or one for each prompt: average "
            f"over the samples of a prompt. Received: kl={kl!r} for {prompts} "
            "prompts"
        )
    return np.broadcast_to(array, (prompts,))
