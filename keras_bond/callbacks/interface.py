"""What callbacks and evaluation need of a trainer."""

import abc


class TrainerInterface(abc.ABC):
    """Methods of a trainer that callbacks and `keras_bond.evaluation` call.

    The trainers of `keras_bond` inherit from it; callbacks check for it with
    `isinstance` and import no trainer.

    Attributes:
        seed: int. Seed of the run.
        scorer: what scores completions now, another object for another reward.
        optimizer: `keras.optimizers.Optimizer`.
    """

    @abc.abstractmethod
    def weight_names(self):
        """Names of the weight sets: "policy", "anchor", perhaps "reference"."""

    @abc.abstractmethod
    def set_anchor_rule(self, update_rate, every):
        """Sets how the anchor follows the policy.

        Args:
            update_rate: float. Share of the policy in the new anchor.
            every: int. Optimizer updates from one anchor update to the next.
        """

    @abc.abstractmethod
    def draw_scored(
        self,
        prompts,
        num_samples=1,
        batch_size=None,
        weights="policy",
        seed=None,
    ):
        """Draws completions and scores them.

        Returns:
            `(samples, rewards)`: a `keras_bond.rewards.Samples` and an array
            `(prompts, num_samples)`, NaN for what could not be scored.
        """

    @abc.abstractmethod
    def score_samples(self, samples):
        """Scores a `keras_bond.rewards.Samples`; NaN for what it cannot."""

    @abc.abstractmethod
    def kls_of(self, samples, weights="reference", batch_size=None):
        """Exact KL of the policy to a weight set, in nats per sequence."""

    @abc.abstractmethod
    def log_probs_and_kls_of(
        self, samples, weights="reference", batch_size=None
    ):
        """`log π` of given completions, and `kls_of` them, in one pass.

        Returns:
            `(log_probs, kls)`: float32 arrays `(rows,)`, in nats.
        """

    @abc.abstractmethod
    def interpolate(self, weight):
        """Moves the policy to `initial + weight · (trained - initial)`.

        Returns:
            float. The weight at which it was.
        """

    @abc.abstractmethod
    def num_updates(self):
        """Optimizer updates so far, an int."""

    @abc.abstractmethod
    def sync(self):
        """Makes the variables hold the current state in the middle of `fit`."""


def check_trainer(callback, model):
    """Raises an error if a callback was not given to a trainer.

    Raises:
        ValueError: naming the callback.
    """
    if not isinstance(model, TrainerInterface):
        raise ValueError(
            f"`{type(callback).__name__}` belongs to a trainer such as "
            "`keras_bond.JBond`: pass it to that model's `fit`. Received: a "
            f"model of type {type(model).__name__}"
        )
