"""Rewards by rank among the completions of one prompt."""

import keras
import numpy as np

from keras_bond.arguments import check_list
from keras_bond.arguments import is_number
from keras_bond.rewards.reward import Reward
from keras_bond.rewards.reward import get
from keras_bond.rewards.validation import RewardValueError
from keras_bond.rewards.wrapper import Wrapper


@keras.saving.register_keras_serializable(package="keras_bond")
class RankFusion(Reward):
    """The mean of the ranks that several rewards give to a completion.

    Each reward ranks the completions of a prompt, from 0 for the worst to 1
    for the best, ties in the middle; the result is the weighted mean. Unlike a
    sum it does not depend on the scales of the rewards: none can drown the
    others. Borda's count. BOND reads no more of a reward than ranks.

    A reward that can score none of a prompt's completions does not count for
    it; one that can score only some takes the prompt out.

    Args:
        rewards: list of what `keras_bond.rewards.get` takes.
        weights: list of float, at least 0, or `None` for ones.

    Raises:
        ValueError: if there are no rewards, or weights do not go with them.

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
                "`weights` must be at least 0, and one of them above. "
                f"Received: weights={weights}"
            )
        self.weights = [float(weight) for weight in weights]
        names = ", ".join(reward.name for reward in self.rewards)
        self.name = f"RankFusion({names})"
        self.needs_text = any(reward.needs_text for reward in self.rewards)

    def score(self, samples):
        ranks = np.zeros((len(samples) // samples.num_samples, 1))
        total = np.zeros_like(ranks)
        for reward, weight in zip(self.rewards, self.weights):
            scores = reward(samples).reshape(-1, samples.num_samples)
            counts = ~np.isnan(scores).all(axis=1, keepdims=True)
            ranks = ranks + np.where(counts, weight * rank(scores), 0.0)
            total += weight * counts
        with np.errstate(invalid="ignore", divide="ignore"):
            return (ranks / total).reshape(-1).astype("float32")

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
    """Ranks each row from 0 to 1, ties in the middle; NaN spoils its row.

    Args:
        scores: float array `(prompts, samples)`.

    Returns:
        float64 array `(prompts, samples)`.
    """
    own, others = scores[:, :, None], scores[:, None, :]
    beaten = (own > others).sum(axis=2) + 0.5 * (own == others).sum(axis=2)
    ranks = (beaten - 0.5) / max(scores.shape[1] - 1, 1)
    return np.where(np.isnan(scores).any(axis=1, keepdims=True), np.nan, ranks)


@keras.saving.register_keras_serializable(package="keras_bond")
class UnfinishedLast(Wrapper):
    """Ranks completions that were cut at the length limit last.

    Among the completions of a prompt, those without an end token come behind
    all others: the same is taken from all of them, the least that does it.
    Where it is not needed, or none has ended, nothing is taken. What TRL's
    `missing_eos_penalty` does, without a penalty to choose; a method that
    reads ranks alone, as BOND does, needs no more.

    Args:
        reward: what `keras_bond.rewards.get` takes.

    Raises:
        ValueError: when scoring samples that do not tell which have ended.

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
        best_cut = np.where(ended, -np.inf, scores).max(axis=1)
        # Wide enough not to be rounded away in float32.
        gap = 1e-3 * np.maximum(1.0, np.abs(scores).max(axis=1))
        mixed = ended.any(axis=1) & ~ended.all(axis=1)
        excess = np.where(mixed, best_cut - worst, -np.inf)
        penalty = np.where(excess >= 0, excess + gap, 0.0)[:, None]
        fused = np.where(ended, scores, scores - penalty)
        return fused.reshape(-1).astype("float32")
