"""A reward that training does not see, and the warning when it falls."""

import dataclasses

import numpy as np

from keras_bond import evaluation
from keras_bond import rewards as rewards_lib
from keras_bond.evaluation.comparison import agreement
from keras_bond.rewards.samples import RewardLog


class GoldReward:
    """Compares a held-out reward with the one that is trained on.

    Args:
        reward: see `keras_bond.rewards.get`.

    Attributes:
        records: list of dicts, one for each time that the mean was better
            than ever before: `step`, int, and `rewards`, a list with the mean
            of each prompt, NaN where it was not scored. The last is the best.
    """

    def __init__(self, reward):
        self.records = []
        self._reward = rewards_lib.get(reward)

    def score(self, samples, rewards):
        """Gold rewards of samples, in the shape of their rewards.

        What it logs is added to what their reward has logged.

        Raises:
            ValueError: if both log a column of the same name.
        """
        log = RewardLog()
        gold = self._reward(dataclasses.replace(samples, log=log))
        taken = sorted(set(log.columns) & set(samples.log.columns))
        if taken:
            raise ValueError(
                "`log_extra` in `gold_reward` of `HeldOut` must not be given "
                "the name of a column that the trained reward logs: use "
                f"another. Received: {taken}"
            )
        samples.log.add(log, range(len(samples)), len(samples))
        return np.asarray(gold, "float64").reshape(rewards.shape)

    def keep_before(self, step):
        """Forgets what was measured from a step on, where a run continues."""
        self.records = [r for r in self.records if r["step"] < step]

    def compare(self, step, gold, rewards):
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
        if not self.records or mean > self._best_mean():
            self.records.append({"step": step, "rewards": by_prompt.tolist()})
        return {
            "gold_reward": mean,
            "agreement": agreement(rewards[scored], gold[scored]),
            "is_overoptimized": is_overoptimized,
        }

    def _is_below_best(self, by_prompt):
        if not self.records:
            return False
        pair = np.stack([by_prompt, self.records[-1]["rewards"]])
        # The same prompts in both: what makes them easy or hard cancels.
        now, best = pair[:, np.isfinite(pair).all(axis=0), None]
        if len(now) < 2:
            return False
        result = evaluation.paired_bootstrap(now, best)
        return result.reward_difference.high < 0

    def _best_mean(self):
        return float(np.nanmean(self.records[-1]["rewards"]))

    def warning(self, point):
        """What to say of a point that `is_overoptimized`."""
        return (
            f"The held-out reward fell to {point['gold_reward']:.4g}, from "
            f"{self._best_mean():.4g} at its best, while the reward that "
            f"is trained on is {point['reward']:.4g}: it is being "
            "over-optimized. Stop earlier, raise `kl_weight`, or train the "
            "reward model on samples of the present policy."
        )
