"""Completions drawn from one or several weight sets."""

from keras import ops

from keras_bond.rollouts import sequences


class Rollout:
    """Draws completions for training, evaluation and generation.

    All draws are determined by the seed, the mode, and the numbers of prompt,
    sample and position, see `random_numbers.Stream`.

    Args:
        decoder: a `keras_bond.rollouts.Decoder`.
        using: callable that takes the name of a weight set and returns a
            context in which the policy runs with it.
    """

    def __init__(self, decoder, using):
        self.decoder = decoder
        self.using = using

    def draw(self, inputs, weights, num_samples, stream):
        """Draws completions of each prompt from one weight set.

        Args:
            inputs: dict of int32 tensors `prompt_ids` `(batch,
                prompt_length)` and `prompt_lengths` `(batch,)`.
            weights: str. Name of the weight set.
            num_samples: int. Completions per prompt.
            stream: a `random_numbers.Stream`.

        Returns:
            dict of tensors over `(batch, num_samples)`, see `Decoder`.
        """
        uniforms = stream.uniforms(
            weights, num_samples, self.decoder.max_completion_length
        )
        with self.using(weights):
            return self.decoder(
                inputs["prompt_ids"], inputs["prompt_lengths"], uniforms
            )

    def collate(self, inputs, *drawn):
        """Concatenates the samples of each prompt and adds masks.

        Args:
            inputs: see `draw`.
            *drawn: dicts of tensors that `draw` returned for each weight set.

        Returns:
            dict of tensors over `(batch, samples)`: `completion_ids`, `mask`,
            `terminated`, `token_ids` and `padding_mask`, see
            `sequences.collate`.
        """
        completion_ids = ops.concatenate(
            [draws["completion_ids"] for draws in drawn], axis=1
        )
        return sequences.collate(
            inputs["prompt_ids"],
            inputs["prompt_lengths"],
            completion_ids,
            self.decoder.stop_token_ids,
        )
