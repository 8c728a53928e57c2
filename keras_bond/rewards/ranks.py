"""Rewards that compare the completions of a prompt."""

import keras
import numpy as np

from keras_bond.arguments import check_list
from keras_bond.arguments import is_number
from keras_bond.rewards.reward import Reward
from keras_bond.rewards.reward import Wrapper
from keras_bond.rewards.reward import get
from keras_bond.rewards.reward import scores_of_parts
from keras_bond.rewards.scores import RewardValueError


@keras.saving.register_keras_serializable(package="keras_bond")
class RankFusion(Reward):
    """The mean of the ranks that several rewards give to a completion.

    Each reward ranks the completions of a prompt, from 0 for the worst to 1
    for the best, with mean ranks for ties; the result is the weighted mean
    (Borda's count). Unlike a sum, it does not depend on the scales of the
    rewards, so none can dominate the others. BOND uses only the ranks of a
    reward anyway.

    A reward that can score none of a prompt's completions does not count for
    that prompt. If it can score only some of them, the prompt is masked out.

    Args:
        rewards: list of what `keras_bond.rewards.get` takes.
        weights: list of float, at least 0, or `None` for ones.

    Raises:
        ValueError: if there are no rewards, or `weights` do not match them.

    Example:

    ```python
    reward = keras_bond.rewards.RankFusion(
        [reward_model, keras_bond.rewards.Length(maximum=50)],
        weights=[3.0, 1.0],
    )
    ```
    """

    compares = True

    def __init__(self, rewards, weights=None):
        check_list("rewards", rewards, "rewards")
        self.rewards = [get(reward) for reward in rewards]
        weights = [1.0] * len(self.rewards) if weights is None else weights
        check_list("weights", weights, "numbers")
        if len(weights) != len(self.rewards) or not weights:
            raise ValueError(
                "`rewards` must hold at least one reward, and `weights` one "
                "number for each. Received: "
                f"{len(self.rewards)} rewards, {len(weights)} weights"
            )
        if not all(is_number(w, 0) for w in weights) or sum(weights) == 0:
            raise ValueError(
                "`weights` must be at least 0, and not all of them 0. "
                f"Received: weights={weights}"
            )
        self.weights = [float(weight) for weight in weights]
        names = ", ".join(reward.name for reward in self.rewards)
        self.name = f"RankFusion({names})"
        self.needs_text = any(reward.needs_text for reward in self.rewards)

    def score(self, samples):
        ranks = np.zeros((len(samples) // samples.num_samples, 1))
        total = np.zeros_like(ranks)
        # Sums of the largest weights could overflow.
        weights = np.array(self.weights) / max(self.weights)
        parts = scores_of_parts(self.rewards, samples)
        for scores, weight in zip(parts, weights):
            scores = scores.reshape(-1, samples.num_samples)
            counts = ~np.isnan(scores).all(axis=1, keepdims=True)
            ranks = ranks + np.where(counts, weight * rank(scores), 0.0)
            total += weight * counts
        with np.errstate(invalid="ignore", divide="ignore"):
            return (ranks / total).reshape(-1)

    def variables(self):
        return [v for reward in self.rewards for v in reward.variables()]

    def get_config(self):
        origins = [reward.origin for reward in self.rewards]
        return {
            "rewards": keras.saving.serialize_keras_object(origins),
            "weights": self.weights,
        }

    @classmethod
    def from_config(cls, config):
        rewards = keras.saving.deserialize_keras_object(config["rewards"])
        return cls(rewards, config["weights"])


def rank(scores):
    """Ranks the samples of each prompt from 0 to 1, with mean ranks for ties.

    Args:
        scores: float64 array `(prompts, samples)`.

    Returns:
        float64 array `(prompts, samples)`; NaN for all samples of a prompt if
        one of its scores is NaN.
    """
    # In NumPy, because tensors would round the scores to float32.
    others = scores[:, None, :]
    num_lt = (others < scores[:, :, None]).sum(axis=2)
    num_ties = (others == scores[:, :, None]).sum(axis=2) - 1
    ranks = (num_lt + 0.5 * num_ties) / max(scores.shape[1] - 1, 1)
    return np.where(np.isnan(scores).any(axis=1, keepdims=True), np.nan, ranks)


@keras.saving.register_keras_serializable(package="keras_bond")
class UnfinishedLast(Wrapper):
    """Ranks completions that were truncated at the length limit last.

    Among the completions of a prompt, those without an end token rank below
    all others: the smallest penalty that achieves this is subtracted from all
    of them. If they rank last already, or no completion has ended, the scores
    stay as they are. This is TRL's `missing_eos_penalty` without a penalty to
    choose; for a method that uses ranks only, as BOND does, it is enough.

    Args:
        reward: what `keras_bond.rewards.get` takes.

    Raises:
        ValueError: when scoring samples without `terminated`.

    Example:

    ```python
    reward = keras_bond.rewards.UnfinishedLast(reward_model)
    ```
    """

    def __init__(self, reward):
        super().__init__(reward)
        self.compares = True

    def score(self, samples):
        if samples.terminated is None:
            raise RewardValueError(
                "`samples` must tell which completions have ended. Received: "
                "terminated=None"
            )
        scores = self.reward(samples).reshape(-1, samples.num_samples)
        ended = np.asarray(samples.terminated).reshape(scores.shape)
        worst = np.where(ended, scores, np.inf).min(axis=1)
        best_unfinished = np.where(ended, -np.inf, scores).max(axis=1)
        # Large enough not to be rounded away.
        gap = 1e-3 * np.maximum(1.0, np.abs(scores).max(axis=1))
        mixed = ended.any(axis=1) & ~ended.all(axis=1)
        excess = np.where(mixed, best_unfinished - worst, -np.inf)
        penalty = np.where(excess >= 0, excess + gap, 0.0)[:, None]
        penalized = np.where(ended, scores, scores - penalty)
        return penalized.reshape(-1)
