"""Of how many samples of the start one sample of a policy is the best."""

import functools

import numpy as np

from keras_bond import formulas
from keras_bond.evaluation.bootstrap import bootstrap
from keras_bond.evaluation.checks import as_paired_rewards
from keras_bond.evaluation.comparison import count_beaten
from keras_bond.evaluation.comparison import win_rate_by_prompt


def effective_n(
    rewards,
    reference_rewards,
    method="log_quantile",
    confidence=0.95,
    num_resamples=1000,
    seed=0,
):
    """The N of the Best-of-N that a policy stands level with.

    1 for the start itself, below 1 for a policy that is worse. Only ranks
    count: a strictly increasing transform of the rewards changes nothing.

    - `"log_quantile"`: `N̂ = -1 / E[log u]`, where `u` is the quantile of a
      sample under the start. From k samples of the start a prompt it inverts
      the mean of `H_c - H_k` (`keras_bond.formulas.n_from_harmonic`), which is
      exact for a policy on the Best-of-N curve. Off the curve it is closer to
      `-1 / E[log u]` the larger k. Bad samples weigh most.
    - `"win_rate"`: `N = w / (1 - w)`, where `w` is the win rate against single
      samples of the start. Good and bad samples weigh the same.

    Ties are broken at random, so that the start is worth 1 whatever its ties.
    Where rewards take few values they hide how good the best answers are, and
    Best-of-N itself measures less than N.

    Args:
        rewards: float array `(prompts, samples)`, of the policy.
        reference_rewards: float array `(prompts, pool)`, of independent
            samples of the start for the same prompts; 16 or more.
        method: `"log_quantile"` (the default) or `"win_rate"`.
        confidence: float in (0, 1). Of the interval. Defaults to 0.95.
        num_resamples: int. Times the prompts are drawn again, with
            replacement. Defaults to 1000.
        seed: int. Of these draws. Defaults to 0.

    Returns:
        `Estimate`; infinite where every sample of the start is beaten.

    Raises:
        ValueError: if the prompts are fewer than 2 or not as many, a reward
            is not finite, `"log_quantile"` has fewer than 2 samples of the
            start a prompt, or an argument is out of range.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> start = rng.normal(size=(500, 16))
    >>> best_of_4 = rng.normal(size=(500, 2, 4)).max(axis=-1)
    >>> n = effective_n(best_of_4, start)
    >>> n.low < 4 < n.high
    True
    """
    rewards, reference_rewards = as_paired_rewards(
        rewards, reference_rewards, "reference_rewards"
    )
    if method == "log_quantile":
        per_prompt, to_n = log_quantile_meter(rewards, reference_rewards)
    elif method == "win_rate":
        per_prompt = win_rate_by_prompt(rewards, reference_rewards)
        to_n = formulas.n_from_win_rate
    else:
        raise ValueError(
            '`method` must be "log_quantile" or "win_rate". '
            f"Received: method={method!r}"
        )
    (estimate,) = bootstrap(
        lambda mean: (to_n(mean),),
        per_prompt[:, None],
        confidence,
        num_resamples,
        seed,
    )
    return estimate


def log_quantile_meter(rewards, reference_rewards):
    """Mean `H_c - H_k` of each prompt, and what turns their mean into N.

    A sample that ties with t samples of the start is as likely to end up in
    each of the `t + 1` places among them. (Half a win for each tie would make
    N up to 1.44 of a start with a constant reward.)

    Args:
        rewards: float32 array `(prompts, samples)`.
        reference_rewards: float32 array `(prompts, pool)`.

    Returns:
        float64 array `(prompts,)`, and a function from float to float.

    Raises:
        ValueError: if the pool is smaller than 2.
    """
    k = reference_rewards.shape[1]
    if k < 2:
        raise ValueError(
            "`reference_rewards` must hold at least 2 samples a prompt, "
            "better 16: draw more from the start, or use "
            f'`method="win_rate"`. Received: {k} sample a prompt'
        )
    beaten, tied = count_beaten(rewards, reference_rewards)
    # Summed from the top, where the table is 0: best of all is exactly 0.
    tails = np.append(np.cumsum(formulas.harmonic_table(k)[::-1])[::-1], 0.0)
    mean = (tails[beaten] - tails[beaten + tied + 1]) / (tied + 1)
    return mean.mean(axis=1), functools.partial(formulas.n_from_harmonic, k=k)
