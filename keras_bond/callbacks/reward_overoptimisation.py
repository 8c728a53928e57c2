"""Whether what is optimised is still what is wanted."""

import keras
import numpy as np

from keras_bond import backend
from keras_bond import evaluation
from keras_bond import rewards as rewards_lib
from keras_bond.arguments import check_count
from keras_bond.callbacks.checks import check_draws


class RewardOveroptimisation(keras.callbacks.Callback):
    """Watches a reward that training does not see.

    A reward model, or a rule, stands for what is really wanted, and a policy
    that is trained on it long enough finds where the two differ: the reward
    goes on rising while the answers get worse (Gao et al., Scaling laws for
    reward model overoptimization, ICML 2023, arXiv 2210.10760). This callback
    scores the same completions of held-out prompts with both after each epoch,
    and adds to the logged numbers

    - `gold/reward`: mean of the held-out reward,
    - `gold/proxy_reward`: mean of the reward that is trained on,
    - `gold/agreement`: how often both order two completions of a prompt alike,
      ties one half: 1 for always, 1/2 when the reward tells nothing any more.

    It prints a warning when the held-out reward is lower than at its best by
    more than chance, and stops nothing. Stock callbacks do: put them after it.

    Args:
        prompts: list of str, or a dict of columns as in `fit`; the columns go
            to both rewards. Those of which a completion cannot be scored by
            both do not count.
        gold_reward: what may be a `reward` of `keras_bond.JBond`, but not the
            one that is trained on: a rule, a larger model, a judge.
        num_samples: int, 2 or more. Completions a prompt. Defaults to 4.
        batch_size: int. Prompts at a time. Defaults to 32.
        verbose: 0 or 1. Whether to print the warning.

    Raises:
        TypeError, ValueError: if `gold_reward` is no reward, a number is out
            of range, the model is no `keras_bond` trainer, or fewer than two
            prompts can be scored.

    Attributes:
        points: list of dicts, one for each epoch: the three numbers without
            `gold/`, and `is_overoptimised`.

    Example:

    ```python
    bond.fit(
        prompts,
        callbacks=[
            keras_bond.callbacks.RewardOveroptimisation(held_out, judge),
            keras.callbacks.EarlyStopping(
                "gold/reward", mode="max", patience=3, restore_best_weights=True
            ),
        ],
    )
    ```
    """

    def __init__(
        self, prompts, gold_reward, num_samples=4, batch_size=None, verbose=1
    ):
        super().__init__()
        check_count("num_samples", num_samples, 2)
        self.prompts = prompts
        self.gold_reward = rewards_lib.get(gold_reward)
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.verbose = verbose
        self.points = []
        self._best = None

    def on_train_begin(self, logs=None):
        check_draws(self, self.model)

    def on_epoch_end(self, epoch, logs=None):
        gold, proxy = self._draw()
        point = {
            "reward": _mean(gold),
            "proxy_reward": _mean(proxy),
            "agreement": agreement(gold, proxy),
            "is_overoptimised": self._is_below_best(gold),
        }
        self.points.append(point)
        if logs is not None:
            logs["gold/reward"] = point["reward"]
            logs["gold/proxy_reward"] = point["proxy_reward"]
            logs["gold/agreement"] = point["agreement"]
        if self._best is None or _mean(gold) > _mean(self._best):
            self._best = gold
        if point["is_overoptimised"] and self._may_print():
            print("\n" + self._warning(point))

    def _draw(self):
        samples, proxy = self.model.draw_scored(
            self.prompts, self.num_samples, batch_size=self.batch_size
        )
        gold = self.gold_reward(samples).reshape(proxy.shape)
        unscored = ~np.isfinite(gold + proxy).all(axis=1)
        if (~unscored).sum() < 2:
            raise ValueError(
                "At least 2 of the `prompts` of `RewardOveroptimisation` must "
                "get both rewards for each completion. Received: "
                f"{(~unscored).sum()} of {len(unscored)}"
            )
        # The prompts stay in their places, to be compared between epochs.
        gold[unscored], proxy[unscored] = np.nan, np.nan
        return gold, proxy

    def _is_below_best(self, gold):
        if self._best is None:
            return False
        both = np.isfinite(gold + self._best).all(axis=1)
        if both.sum() < 2:
            return False
        result = evaluation.paired_bootstrap(gold[both], self._best[both])
        return result.reward_difference.high < 0

    def _may_print(self):
        return self.verbose and backend.devices.process_index() == 0

    def _warning(self, point):
        return (
            f"The held-out reward fell to {point['reward']:.4g}, from "
            f"{_mean(self._best):.4g} at its best, while the reward that is "
            f"trained on is {point['proxy_reward']:.4g}: it is being "
            "over-optimised. Stop earlier, raise `kl_weight`, or train the "
            "reward model on samples of the present policy."
        )


def agreement(gold, proxy):
    """How often two rewards order two samples of a prompt alike.

    Args:
        gold, proxy: float arrays `(prompts, samples)`; prompts with NaN do not
            count.

    Returns:
        float in [0, 1]: the share of the pairs of samples that differ in gold
        which proxy orders alike, ties of proxy one half; NaN if none differ.
    """
    signs = [np.sign(r[:, :, None] - r[:, None, :]) for r in (gold, proxy)]
    differs = np.abs(signs[0]) == 1
    return _mean_or_nan(0.5 + 0.5 * (signs[0] * signs[1])[differs])


def _mean_or_nan(values):
    return float(values.mean()) if values.size else float("nan")


def _mean(rewards):
    return float(np.nanmean(rewards))
