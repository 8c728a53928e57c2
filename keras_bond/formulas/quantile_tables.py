"""Tables of log-quantile estimates by the number of beaten anchor samples.

Each table lists `f[c]`, an estimate of `log p_le` when `c` of `k` anchor
samples are beaten, for `c = 0 ... k`. It depends on ranks only: a strictly
increasing transform of the rewards changes nothing.
"""

import math

from keras import ops

LOG_16 = math.log(16.0)


def monte_carlo_table(k):
    """`f[c] = log(c / k)`, the Monte-Carlo quantile of eq. 10.

    The paper does not define the logarithm for `c = 0`. Here it counts as half
    a sample, `log(1 / 2k)`, which keeps the mean over anchor samples near its
    exact value of -1.

    Args:
        k: int, at least 1. Anchor samples per prompt.

    Returns:
        list of `k + 1` float.
    """
    return [math.log(max(c, 0.5) / k) for c in range(k + 1)]


def harmonic_table(k):
    """`f[c] = H_c - H_k`, unbiased for the first k terms of the log-series.

    `log u = -Σ_m (1-u)^m / m`, and `E[H_c - H_k] = -Σ_{m<=k} (1-u)^m / m` for
    `c ~ Binomial(k, u)`. Over anchor samples the mean is `-k / (k + 1)`.

    Args:
        k: int, at least 1. Anchor samples per prompt.

    Returns:
        list of `k + 1` float.
    """
    return [
        -math.fsum(1.0 / i for i in range(c + 1, k + 1)) for c in range(k + 1)
    ]


def pairs_table(k):
    """`f[c] = -log 16 · C(k-c, 2) / C(k, 2)`: J-BOND's rule over all pairs.

    Eq. 17 penalizes a completion that is worse than BOTH of two anchor
    samples. The mean over all pairs of k samples has the same expectation,
    `-log 16 (1 - p_le)²`, and less variance. For `k = 2` it is eq. 17.

    Args:
        k: int, at least 2. Anchor samples per prompt.

    Returns:
        list of `k + 1` float.
    """
    pairs = math.comb(k, 2)
    return [-LOG_16 * math.comb(k - c, 2) / pairs for c in range(k + 1)]


def tie_table(table, n):
    """`F[c][t]`: reward for `c` beaten and `t` tied anchor samples, times N-1.

    A tie counts as half a win. For N = 2 it is the mean of `f` over
    `c + Binomial(t, 1/2)`, exact because `π_Bo2 = π_ref (p_le + p_lt)`; for
    larger N the log-mean-exp of `(N-1) f` over the ranks among the tied.

    Args:
        table: list of `k + 1` float, see above.
        n: int, at least 2. Denoted N in the paper.

    Returns:
        list of `k + 1` lists of `k + 1` float; 0 where `c + t > k`.
    """
    k = len(table) - 1
    return [
        [
            _midrank(table[c : c + t + 1], n) if c + t <= k else 0.0
            for t in range(k + 1)
        ]
        for c in range(k + 1)
    ]


def _midrank(entries, n):
    t = len(entries) - 1
    if n == 2:
        return sum(math.comb(t, j) * 0.5**t * f for j, f in enumerate(entries))
    return math.log(sum(math.exp((n - 1) * f) for f in entries) / (t + 1))


def count_beaten(rewards, anchor_rewards, tie_breakers=None):
    """Counts the anchor samples that each completion beats and ties with.

    Args:
        rewards: float tensor `(batch, samples)`.
        anchor_rewards: float tensor `(batch, k)` of the same prompts.
        tie_breakers: pair of uniform tensors of these two shapes that order
            equal rewards at random, or `None`.

    Returns:
        `(beaten, tied)`, int32 tensors `(batch, samples)`.
    """
    policy = ops.expand_dims(rewards, -1)
    anchor = ops.expand_dims(anchor_rewards, -2)
    beats, ties = ops.greater(policy, anchor), ops.equal(policy, anchor)
    if tie_breakers is not None:
        policy, anchor = tie_breakers
        wins = ops.expand_dims(policy, -1) > ops.expand_dims(anchor, -2)
        beats = ops.logical_or(beats, ops.logical_and(ties, wins))
        ties = ops.zeros_like(ties)
    return tuple(
        ops.sum(ops.cast(which, "int32"), axis=-1) for which in (beats, ties)
    )


def look_up(tie_table, beaten, tied):
    """`F[beaten, tied]` for tensors of counts.

    Args:
        tie_table: list of lists of float, see `tie_table`.
        beaten: int32 tensor.
        tied: int32 tensor of the same shape.

    Returns:
        float32 tensor of the same shape.
    """
    flat = ops.convert_to_tensor(sum(tie_table, []), "float32")
    return ops.take(flat, beaten * len(tie_table) + tied)


def harmonic_number(x):
    """`H_x = ψ(x + 1) + γ` for real `x >= 0`; `Σ_{i<=x} 1/i` for integers.

    Six steps of the recurrence `H_x = H_{x+1} - 1/(x+1)`, then the asymptotic
    series of the digamma function (Abramowitz and Stegun, 6.3.18), to float32
    precision.

    Args:
        x: float tensor, at least 0.

    Returns:
        float tensor of the same shape.
    """
    x = ops.convert_to_tensor(x)
    steps = sum(1.0 / (x + i) for i in range(1, 7))
    z = x + 7.0
    series = 1.0 / 12 - (1.0 / 120 - 1.0 / (252 * z * z)) / (z * z)
    digamma = ops.log(z) - 0.5 / z - series / (z * z)
    return digamma - steps + 0.5772156649015329
