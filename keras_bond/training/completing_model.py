"""A saved model that completes prompts when it is asked to."""

import contextlib

import numpy as np

from keras_bond.training import generation
from keras_bond.training import scoring
from keras_bond.training import standardize
from keras_bond.training.saved_model import SavedModel


class CompletingModel(SavedModel):
    """Says how completions are drawn and scored outside of training.

    A child has a `policy`, its `codec` and `encoder`, the `decoder` that draws,
    and, beside the policy's own, `weight_sets` by name.
    """

    def predict(self, x, batch_size=None, verbose="auto", seed=None):
        """Draws one completion for each prompt from the policy.

        Args:
            x: list or array of str, or a dict of columns.
            batch_size: int. Defaults to 32.
            verbose: see `keras.Model.predict`.
            seed: int, or `None` for the model's.

        Returns:
            array of str `(prompts,)`; of token ids where the policy has no
            tokenizer. `bond.policy.generate` offers other samplers.
        """
        completions = self.generate(
            x, batch_size=batch_size, verbose=verbose, seed=seed
        )
        return np.array(completions, dtype=object)

    def generate(
        self,
        prompts,
        num_samples=1,
        batch_size=None,
        weights="policy",
        seed=None,
        verbose=0,
    ):
        """Draws completions from the full distribution, as training does.

        `bond.policy.generate` is KerasHub's own, with its samplers and its
        `max_length`; this one draws what the losses are about, many samples a
        prompt at the cost of reading the prompt once.

        Args:
            prompts: list or array of str, or a dict of columns.
            num_samples: int. Completions a prompt.
            batch_size: int. Prompts at a time. Defaults to 32.
            weights: `"policy"`, `"anchor"` or `"reference"`.
            seed: int, or `None` for the model's.
            verbose: 0 or 1. Whether to show a progress bar.

        Returns:
            list of str, one for each prompt; of lists of `num_samples` str if
            that is above 1. Lists of token ids where there is no tokenizer.
        """
        seed = self.seed if seed is None else standardize.seed_of(seed)
        shows_progress = verbose in (1, "auto")
        _, rows = generation.draw_tokens(
            self,
            prompts,
            num_samples,
            batch_size,
            weights,
            seed,
            shows_progress,
        )
        texts = rows if self.codec is None else self.codec.decode(rows)
        if num_samples == 1:
            return texts
        starts = range(0, len(texts), num_samples)
        return [texts[i : i + num_samples] for i in starts]

    def draw_scored(
        self,
        prompts,
        num_samples=1,
        batch_size=None,
        weights="policy",
        seed=None,
    ):
        """Draws completions, as `generate` does, and scores them.

        What `keras_bond.evaluation` compares policies by.

        Args:
            prompts, num_samples, batch_size, weights, seed: see `generate`;
                columns of a dict go to the reward.

        Returns:
            `(samples, rewards)`: a `keras_bond.rewards.Samples` of all
            completions, those of a prompt side by side, and a float32 array
            `(prompts, num_samples)`, NaN for what could not be scored.
        """
        seed = self.seed if seed is None else standardize.seed_of(seed)
        return scoring.draw_scored(
            self, prompts, num_samples, batch_size, weights, seed
        )

    def score_samples(self, samples):
        """Scores a `keras_bond.rewards.Samples`; NaN where that is impossible.

        Returns:
            float32 array `(rows,)`.
        """
        return self._scorer(samples)

    def using(self, weights):
        """Returns a context in which the policy runs with a set of weights.

        Args:
            weights: `"policy"`, or a name in `weight_sets`.
        """
        if weights == "policy":
            return contextlib.nullcontext()
        return self.weight_sets[weights].scope(self.policy)
