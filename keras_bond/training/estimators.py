"""Which estimators go together, and which do not."""

import dataclasses

from keras_bond import formulas
from keras_bond.arguments import check_count
from keras_bond.training import checks

FORWARD = (
    "auto",
    "best_sample",
    "order_statistics",
    "control_variate",
    "density_ratio",
    "pooled",
)
BACKWARD = ("auto", "policy_samples", "pooled")
QUANTILES = ("harmonic", "pairs", "monte_carlo", "learned")
TIES = ("random", "strict", "midrank")
KL_ESTIMATORS = ("log_ratio", "centred_log_ratio", "full_vocabulary")
# Stands for a quantile model that the user brings.
MODEL = "model"
TABLES = {
    "harmonic": formulas.harmonic_table,
    "pairs": formulas.pairs_table,
    "monte_carlo": formulas.monte_carlo_table,
}


@dataclasses.dataclass(frozen=True)
class Estimators:
    """How `keras_bond.Bond` estimates its gradient; see there.

    Raises:
        ValueError: if a choice is unknown, or two do not go together.
    """

    best_of_n: int
    num_policy_samples: int
    num_anchor_samples: int
    forward: str
    backward: str
    quantiles: str
    ties: str
    baseline: str
    kl_estimator: str

    def __post_init__(self):
        check_count("best_of_n", self.best_of_n, 2)
        check_count("num_policy_samples", self.num_policy_samples, 1)
        check_count("num_anchor_samples", self.num_anchor_samples, 1)
        checks.check_one_of("forward", self.forward, FORWARD)
        checks.check_one_of("backward", self.backward, BACKWARD)
        checks.check_one_of("quantiles", self.quantiles, (*QUANTILES, MODEL))
        checks.check_one_of("ties", self.ties, TIES)
        checks.check_one_of("baseline", self.baseline, formulas.BASELINES)
        checks.check_one_of("kl_estimator", self.kl_estimator, KL_ESTIMATORS)
        self._check_forward()
        self._check_backward()
        self._check_quantiles()

    def resolved(self):
        """Returns the same with `"auto"` replaced by the best that fits."""
        forward, backward = self.forward, self.backward
        if forward == "auto":
            forward = "pooled" if self.best_of_n == 2 else "control_variate"
        if backward == "auto":
            poolable = not self._obstacles_to_pooling()
            backward = "pooled" if poolable else "policy_samples"
        return dataclasses.replace(self, forward=forward, backward=backward)

    @property
    def uses_model(self):
        """Whether a quantile model takes the place of counting."""
        return self.quantiles in ("learned", MODEL)

    @property
    def learns_quantiles(self):
        """Whether the quantile model is trained beside the policy."""
        return self.quantiles == "learned"

    @property
    def needs_ranks(self):
        """Whether the backward part counts beaten anchor samples."""
        return self.backward == "policy_samples" and not self.uses_model

    @property
    def needs_other_prompts(self):
        """Whether the baseline is made of other prompts alone."""
        if self.backward == "pooled":
            return False
        return self.baseline == "batch" or (
            self.baseline == "mixed" and self.num_policy_samples == 1
        )

    def tie_table(self):
        """The reward of each number of anchor samples beaten and tied."""
        table = TABLES[self.quantiles](self.num_anchor_samples)
        return formulas.tie_table(table, self.best_of_n, self.ties)

    def _check_forward(self):
        n, k = self.best_of_n, self.num_anchor_samples
        counts = ("best_sample", "order_statistics", "control_variate")
        by_count = self.forward in counts or (self.forward == "auto" and n > 2)
        if by_count and n > k:
            raise ValueError(
                "`best_of_n` must not exceed `num_anchor_samples`, for the "
                "best of n is picked among these: draw more, or distil a "
                "smaller N from an anchor that moves. Received: "
                f"best_of_n={n}, num_anchor_samples={k}, "
                f"forward={self.forward!r}"
            )
        if self.forward == "density_ratio" and not self.uses_model:
            raise ValueError(
                '`forward="density_ratio"` needs a quantile model: pass '
                'quantiles="learned" or a `keras_bond.QuantileModel`. '
                f"Received: quantiles={self.quantiles!r}"
            )
        if self.forward == "pooled" and n != 2:
            raise ValueError(
                '`forward="pooled"` holds for `best_of_n=2` only: use '
                f'"control_variate". Received: best_of_n={n}'
            )

    def _obstacles_to_pooling(self):
        """The settings that pooling cannot serve, as `name=value`."""
        wanted = {
            "best_of_n": 2,
            "quantiles": "harmonic",
            "ties": "midrank",
            "baseline": "mixed",
        }
        return [
            f"{name}={getattr(self, name)!r}"
            for name, value in wanted.items()
            if getattr(self, name) != value
        ]

    def _check_backward(self):
        obstacles = self._obstacles_to_pooling()
        if self.backward == "pooled" and obstacles:
            raise ValueError(
                '`backward="pooled"` goes with best_of_n=2, '
                'quantiles="harmonic", ties="midrank" and baseline="mixed": '
                'use `backward="policy_samples"`. '
                f"Received: {', '.join(obstacles)}"
            )
        if self.baseline == "prompt" and self.num_policy_samples < 2:
            raise ValueError(
                '`baseline="prompt"` is the mean of the OTHER policy samples '
                'of a prompt and needs at least 2: use "batch". '
                f"Received: num_policy_samples={self.num_policy_samples}"
            )

    def _check_quantiles(self):
        k = self.num_anchor_samples
        if self.quantiles in ("harmonic", "pairs", "learned") and k < 2:
            raise ValueError(
                f'`quantiles="{self.quantiles}"` needs at least 2 anchor '
                'samples a prompt: draw more, or use "monte_carlo". '
                f"Received: num_anchor_samples={k}"
            )
        if self.quantiles == "pairs" and self.best_of_n != 2:
            raise ValueError(
                '`quantiles="pairs"`, the reward of J-BOND, is made for '
                '`best_of_n=2`: use "harmonic". '
                f"Received: best_of_n={self.best_of_n}"
            )
