"""Samples of the initial policy, with which a policy is compared."""

import numpy as np

from keras_bond import evaluation
from keras_bond.callbacks.completions import Answers
from keras_bond.evaluation.checks import check_scored

DEFAULT_NS = (1, 2, 4, 8)


class ReferencePool:
    """A pool of samples of the initial policy for some held-out prompts.

    Args:
        draw: function of the name of a weight set and a turn, see
            `keras_bond.callbacks.HeldOut.draw`.
        ns: tuple of int, or `None`. Which Best-of-N the frontier has.
        pool_size: int. Samples per prompt, a multiple of what `draw` draws.

    Attributes:
        answers: `Answers`, drawn with the random numbers of the policy: they
            differ from its completions by the weights alone.
        frontier: list of dicts, Best-of-N on the prompts that were scored.

    Raises:
        ValueError: if fewer than two prompts can be scored.
    """

    def __init__(self, draw, ns, pool_size):
        self.ns = DEFAULT_NS if ns is None else ns
        samples, rewards = draw("reference")
        # Independent of the policy's samples, which are those of turn 0.
        turns = range(1, 1 + pool_size // rewards.shape[1])
        pool = [draw("reference", turn)[1] for turn in turns]
        self._pool = np.concatenate(pool, axis=1)
        self.answers = Answers("reference", samples, rewards, self._pool)
        self._compare_on(np.isfinite(self._pool).all(axis=1))

    def compare(self, rewards):
        """Compares rewards `(prompts, samples)` of a policy with the pool.

        Prompts that are not scored, here or in the pool, do not count.

        Returns:
            dict of float: `reward`, `reference_reward`, `win_rate`, and
            `effective_n` with the ends of its interval.

        Raises:
            ValueError: if fewer than two prompts are scored.
        """
        scored = np.isfinite(rewards).all(axis=1)
        scored &= np.isfinite(self._pool).all(axis=1)
        pool = self._compare_on(scored)
        rewards = rewards[scored]
        n = evaluation.effective_n(rewards, pool)
        return {
            "reward": float(rewards.mean()),
            "reference_reward": float(pool.mean()),
            "win_rate": evaluation.win_rate(rewards, pool),
            "effective_n": n.value,
            "effective_n_low": n.low,
            "effective_n_high": n.high,
        }

    def _compare_on(self, scored):
        """The pool of the scored prompts, on which the frontier is then."""
        check_scored("HeldOut", scored)
        pool = self._pool[scored]
        self.frontier = evaluation.best_of_n_frontier(pool, self.ns)
        return pool

    def summary(self, point):
        """One line about a point, see `compare`; with its `kl`."""
        return (
            "One sample is worth the best of "
            f"{point['effective_n']:.2f} [{point['effective_n_low']:.2f}, "
            f"{point['effective_n_high']:.2f}] of the initial policy: reward "
            f"{point['reward']:.3f}, from {point['reference_reward']:.3f}, at "
            f"a KL of {point['kl']:.3f} nats"
        )
