"""Where a policy stands against Best-of-N of the policy it started from."""

from keras import ops

from keras_bond import formulas


def best_of_n_frontier(rewards, ns=(1, 2, 4, 8)):
    """Exact reward, win rate and KL of Best-of-N, for every N from one pool.

    The order statistics of the pool are unbiased for reward and win rate (see
    `keras_bond.formulas.best_of_n_weights`); the KL puts the pool's quantiles
    in for the exact ones.

    Args:
        rewards: float array `(prompts, pool)`: rewards of independent samples
            of the starting policy, `pool` above the largest N.
        ns: tuple of int.

    Returns:
        list of dicts with `n`, `reward`, `win_rate` (against one sample of
        the start, ties one half) and `kl` (to the start, in nats).

    Raises:
        ValueError: if an N is not below the size of the pool.
    """
    rewards = ops.convert_to_tensor(rewards, "float32")
    pool = rewards.shape[1]
    if max(ns) >= pool:
        raise ValueError(
            "`rewards` must hold more samples a prompt than the largest N. "
            f"Received: a pool of {pool} for ns={tuple(ns)}"
        )
    return [_best_of_n(rewards, n) for n in ns]


def _best_of_n(rewards, n):
    weights = formulas.best_of_n_weights(rewards, n)
    best = ops.sum(weights * rewards, axis=1)
    return {
        "n": n,
        "reward": float(ops.mean(best)),
        "win_rate": float(ops.mean(formulas.best_of_n_win_rate(rewards, n))),
        "kl": float(ops.mean(formulas.best_of_n_kl(rewards, n))),
    }


def win_rate(rewards, other_rewards):
    """How often a sample beats one of another policy, ties counting one half.

    All pairs of samples of the same prompt are compared.

    Args:
        rewards: float array `(prompts, samples)`.
        other_rewards: float array `(prompts, other_samples)`.

    Returns:
        float in [0, 1].
    """
    mine = ops.convert_to_tensor(rewards, "float32")[:, :, None]
    theirs = ops.convert_to_tensor(other_rewards, "float32")[:, None, :]
    wins = ops.cast(mine > theirs, "float32")
    ties = ops.cast(ops.equal(mine, theirs), "float32")
    return float(ops.mean(wins + 0.5 * ties))
