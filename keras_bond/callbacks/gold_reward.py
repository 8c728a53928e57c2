"""A reward that training does not see, and the warning when it falls."""

import numpy as np

from keras_bond import evaluation
from keras_bond import rewards as rewards_lib
from keras_bond.evaluation.comparison import agreement


class GoldReward:
    """Compares a held-out reward with the one that is trained on.

    Args:
        reward: see `keras_bond.rewards.get`.

    Attributes:
        best: list of float, the mean gold reward of each prompt when their
            mean was best, NaN where a prompt was not scored; or `None`.
    """

    def __init__(self, reward):
        self.best = None
        self._reward = rewards_lib.get(reward)

    def score(self, samples, rewards):
        """Gold rewards of samples, in the shape of their rewards."""
        gold = np.asarray(self._reward(samples), "float64")
        return gold.reshape(rewards.shape)

    def compare(self, gold, rewards):
        """Compares gold rewards `(prompts, samples)` with rewards.

        Prompts that do not get both for each completion do not count.

        Returns:
            dict: `gold_reward` and `agreement`, float, and
            `is_overoptimized`, bool: whether the gold reward is below its best
            by more than chance.

        Raises:
            ValueError: if fewer than two prompts get both.
        """
        scored = np.isfinite(gold + rewards).all(axis=1)
        if scored.sum() < 2:
            raise ValueError(
                "At least 2 of the `prompts` of `HeldOut` must get both "
                "rewards for each completion. Received: "
                f"{scored.sum()} of {len(scored)}"
            )
        by_prompt = np.where(scored, gold.mean(axis=1), np.nan)
        mean = float(np.nanmean(by_prompt))
        is_overoptimized = self._is_below_best(by_prompt)
        if self.best is None or mean > np.nanmean(self.best):
            self.best = by_prompt.tolist()
        return {
            "gold_reward": mean,
            "agreement": agreement(rewards[scored], gold[scored]),
            "is_overoptimized": is_overoptimized,
        }

    def _is_below_best(self, by_prompt):
        if self.best is None:
            return False
        pair = np.stack([by_prompt, self.best])
        # The same prompts in both: what makes them easy or hard cancels.
        now, best = pair[:, np.isfinite(pair).all(axis=0), None]
        if len(now) < 2:
            return False
        result = evaluation.paired_bootstrap(now, best)
        return result.reward_difference.high < 0

    def warning(self, point):
        """What to say of a point that `is_overoptimized`."""
        return (
            f"The held-out reward fell to {point['gold_reward']:.4g}, from "
            f"{np.nanmean(self.best):.4g} at its best, while the reward that "
            f"is trained on is {point['reward']:.4g}: it is being "
            "over-optimized. Stop earlier, raise `kl_weight`, or train the "
            "reward model on samples of the present policy."
        )
