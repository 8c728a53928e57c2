"""How a claim about curves is decided; the criteria were fixed beforehand.

A run is summed up by numbers, a claim says which of two numbers is larger, or
that they agree. Runs of one seed share start and rewards, so differences are
taken seed by seed:

- "a > b" HELD if the mean of `a - b` over seeds exceeds 2 standard errors,
  REVERSED if it is below -2 standard errors, else UNDECIDED;
- "a ~ b" HELD if the mean of `|a - b|` is at most `AGREES` of a stated gain,
  else NOT HELD.

Curves are float arrays `(seeds, measurements)`, the start first.
"""

import dataclasses

import numpy as np

AGREES = 0.1
# Where curves are compared at equal KL: how many points, and from which share
# of the largest KL that both reach.
NUM_POINTS = 20
FROM_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came out of one claim.

    Attributes:
        figure: int. Figure of the paper.
        claim: str. What it says, with the criterion.
        numbers: str. What was measured, mean ± standard error over seeds.
        outcome: str. HELD, REVERSED, UNDECIDED or NOT HELD.
    """

    figure: int
    claim: str
    numbers: str
    outcome: str


def larger(figure, claim, a, b):
    """Judges "a > b" from arrays `(seeds,)`."""
    difference = np.asarray(a) - np.asarray(b)
    mean, error = _mean_and_error(difference)
    outcome = "UNDECIDED"
    if abs(mean) > 2 * error:
        outcome = "HELD" if mean > 0 else "REVERSED"
    numbers = f"difference {mean:+.3f} ± {error:.3f}"
    return Verdict(figure, claim, numbers, outcome)


def agree(figure, claim, a, b, gain):
    """Judges "a ~ b": `|a - b|` against `AGREES` of a gain, all `(seeds,)`."""
    share = np.abs(np.asarray(a) - np.asarray(b)) / np.abs(gain)
    mean, error = _mean_and_error(share)
    outcome = "HELD" if mean <= AGREES else "NOT HELD"
    numbers = f"apart by {100 * mean:.1f} ± {100 * error:.1f} % of the gain"
    return Verdict(figure, claim, numbers, outcome)


def _mean_and_error(values):
    if len(values) < 2:
        return float(values[0]), float("inf")
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(error)


def last(values):
    """The end of a run: mean of the last sixth of its measurements."""
    return values[:, -max(1, values.shape[1] // 6) :].mean(axis=1)


def second_half(values):
    """Mean over the second half of a run, for what is noisy."""
    return values[:, values.shape[1] // 2 :].mean(axis=1)


def whole(values):
    """Mean over a run: the larger, the faster a rising number rose."""
    return values.mean(axis=1)


def rise_time(values):
    """First measurement past 90 % of the way from start to end, `(seeds,)`."""
    reached = (
        values - values[:, :1] >= 0.9 * (last(values) - values[:, 0])[:, None]
    )
    return reached.argmax(axis=1).astype("float64")


def reward_at_equal_kl(curve, other):
    """Mean rewards of two settings over the KLs that both reach.

    Each run is made a function by the highest reward reached up to a KL, so
    that noise along the way does not count; seed by seed, at `NUM_POINTS` KLs.

    Returns:
        pair of float arrays `(seeds,)`.
    """
    pairs = []
    for seed in range(len(curve["reward"])):
        kls = [c["kl_start"][seed] for c in (curve, other)]
        highest = min(kl.max() for kl in kls)
        grid = np.linspace(FROM_SHARE * highest, highest, NUM_POINTS)
        rewards = [c["reward"][seed] for c in (curve, other)]
        pairs.append(
            [_front(kl, r, grid).mean() for kl, r in zip(kls, rewards)]
        )
    return np.array(pairs).T


def _front(kl, reward, grid):
    order = np.argsort(kl)
    best = np.maximum.accumulate(reward[order])
    return np.interp(grid, kl[order], best)


def straightness(values):
    """R² of the straight line that fits each run best, `(seeds,)`."""
    steps = np.arange(values.shape[1])
    return np.array([np.corrcoef(steps, run)[0, 1] ** 2 for run in values])


def table(verdicts):
    """Writes verdicts as a Markdown table."""
    lines = ["| figure | claim | measured | outcome |", "|---|---|---|---|"]
    lines += [
        f"| {v.figure} | {v.claim} | {v.numbers} | {v.outcome} |"
        for v in verdicts
    ]
    return "\n".join(lines) + "\n"
