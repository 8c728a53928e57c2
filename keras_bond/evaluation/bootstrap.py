"""Bootstrap confidence intervals over prompts."""

import dataclasses

import numpy as np

from keras_bond.arguments import check_count
from keras_bond.arguments import is_count
from keras_bond.arguments import is_number
from keras_bond.arguments import shown

# More would take hours and change no digit that is shown.
MAX_RESAMPLES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number that was estimated, with its confidence interval.

    Attributes:
        value: float. The estimate.
        low: float. Lower end of the interval.
        high: float. Upper end of the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(statistic, per_prompt, confidence, num_resamples, seed):
    """Percentile intervals of functions of means over prompts.

    Prompts are the independent units: samples of one prompt resemble each
    other. A prompt is resampled with all its quantities, so pairs stay pairs.
    (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.)

    Args:
        statistic: function from one mean for each quantity to a tuple of
            floats.
        per_prompt: float array `(prompts, quantities)`.
        confidence: float in (0, 1).
        num_resamples: int, at least 1, at most `MAX_RESAMPLES`.
        seed: int, at least 0.

    Returns:
        list of `Estimate`, one for each float of `statistic`.

    Raises:
        ValueError: if there is only one prompt, or an argument is out of
            range.
    """
    _check(len(per_prompt), confidence, num_resamples)
    check_count("seed", seed, 0)
    generator = np.random.default_rng(seed)
    prompts = len(per_prompt)
    resamples = [
        statistic(*per_prompt[chosen].mean(axis=0))
        for chosen in (
            generator.integers(prompts, size=prompts)
            for _ in range(num_resamples)
        )
    ]
    tail = (1 - confidence) / 2
    # Interpolating between two infinite neighbors would give NaN.
    lows, highs = np.quantile(
        resamples, (tail, 1 - tail), axis=0, method="inverted_cdf"
    )
    values = statistic(*per_prompt.mean(axis=0))
    return [
        Estimate(float(value), float(low), float(high))
        for value, low, high in zip(values, lows, highs)
    ]


def _check(prompts, confidence, num_resamples):
    if prompts < 2:
        raise ValueError(
            "`rewards` must hold at least 2 prompts, since the interval "
            f"measures how much they differ. Received: {prompts} prompt"
        )
    if not is_number(confidence, 0, 1) or confidence in (0, 1):
        raise ValueError(
            "`confidence` must be between 0 and 1, both excluded, such as "
            f"0.95. Received: confidence={confidence}"
        )
    if not is_count(num_resamples, 1) or num_resamples > MAX_RESAMPLES:
        raise ValueError(
            "`num_resamples` must be a positive integer, such as 1000, and at "
            f"most {MAX_RESAMPLES}. Received: "
            f"num_resamples={shown(num_resamples)}"
        )
