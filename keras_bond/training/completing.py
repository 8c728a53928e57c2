"""Completions drawn, and optionally scored, outside of training."""

import math

import keras
import numpy as np
from keras import ops

from keras_bond.arguments import check_count
from keras_bond.backend import devices
from keras_bond.data import lengths
from keras_bond.data import prompts as prompts_lib
from keras_bond.data.images import IMAGES
from keras_bond.rewards.samples import DRAWN
from keras_bond.rewards.samples import Samples
from keras_bond.rollouts.rollout import Stream
from keras_bond.training import checks
from keras_bond.training import standardize


class Completing:
    """Mixin for `keras.Model` that draws completions of prompts.

    It uses `rollout`, `weight_sets`, `tokenizer`, `encoder`, `seed`,
    `max_prompt_length`, `max_completion_length`, `run_stage` of
    `backend.StagedTrainer`, `check_weights` of `WholeFiles`, and `_scorer`.
    """

    def predict(self, x, batch_size=None, verbose="auto", seed=None):
        """Draws one completion for each prompt from the policy.

        Args:
            x: list or array of str, or other prompts as in `fit`, which must
                end.
            batch_size: int. Defaults to 32.
            verbose: see `keras.Model.predict`.
            seed: int, or `None` for the model's seed.

        Returns:
            array of str `(prompts,)`, or of token ids if the policy has no
            tokenizer. Use `bond.policy.generate` for other samplers.
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
        """Draws completions from the full distribution, as in training.

        `bond.policy.generate` is KerasHub's method, with KerasHub's samplers
        and `max_length`. This method draws from the distribution that the
        losses are computed on, and processes each prompt only once for all its
        samples.

        Args:
            prompts: list or array of str, or other prompts as in `fit`, which
                must end.
            num_samples: int. Completions per prompt.
            batch_size: int. Prompts per batch. Defaults to 32.
            weights: `"policy"`, `"anchor"` or `"reference"`.
            seed: int, or `None` for the model's seed.
            verbose: 0 or 1. Whether to show a progress bar.

        Returns:
            list with one str per prompt or, if `num_samples` is above 1, one
            list of `num_samples` str per prompt. Without a tokenizer, lists of
            token ids take the place of the strings.
        """
        samples = self._draw_all(
            prompts,
            num_samples,
            batch_size,
            weights,
            seed,
            shows_progress=verbose in (1, "auto"),
        )
        completions = samples.completions
        if self.tokenizer is None:
            completions = samples.completion_ids
        if num_samples == 1:
            return completions
        starts = range(0, len(completions), num_samples)
        return [completions[i : i + num_samples] for i in starts]

    def draw_scored(
        self,
        prompts,
        num_samples=1,
        batch_size=None,
        weights="policy",
        seed=None,
    ):
        """Draws completions, as `generate` does, and scores them.

        `keras_bond.evaluation` compares policies with this method.

        Args:
            prompts, num_samples, batch_size, weights, seed: see `generate`;
                columns of a dict are passed to the reward.

        Returns:
            `(samples, rewards)`: a `keras_bond.rewards.Samples` of all
            completions, where those of one prompt are adjacent, and an array
            `(prompts, num_samples)`, NaN for completions that could not be
            scored.
        """
        samples = self._draw_all(
            prompts, num_samples, batch_size, weights, seed
        )
        return samples, self.score_samples(samples).reshape(-1, num_samples)

    @property
    def scorer(self):
        """What scores completions, another object for each `reward` set."""
        return self._scorer

    def score_samples(self, samples):
        """Scores a `keras_bond.rewards.Samples`.

        Returns:
            array `(rows,)`, NaN for completions that could not be scored.
        """
        return self._scorer(samples)

    def kls_of(self, samples, weights="reference", batch_size=None):
        """Exact KL of the policy to another weight set, on given completions.

        Args:
            samples: a `keras_bond.rewards.Samples`, such as `draw_scored`
                returns; of the policy, or the mean is not its KL.
            weights: `"reference"` or `"anchor"`.
            batch_size: int. Completions at a time. Defaults to 32.

        Returns:
            float32 array `(rows,)`, in nats per sequence: summed over the
            tokens of each completion, exact over the vocabulary.
        """

        def read(inputs, hidden, other):
            return self.reader.kls(inputs, hidden, other, weights)[:, 0]

        return self._read_samples("kls", read, samples, weights, batch_size)

    def log_probs_and_kls_of(
        self, samples, weights="reference", batch_size=None
    ):
        """`log π` of given completions, and their `kls_of`, in one pass.

        Args:
            samples, weights, batch_size: see `kls_of`; any completions of
                prompts, whoever has drawn them.

        Returns:
            `(log_probs, kls)`: float32 arrays `(rows,)`, in nats per sequence.
        """

        def read(inputs, hidden, other):
            kls = self.reader.kls(inputs, hidden, other, weights)
            log_probs = self.reader.log_probs(inputs, hidden)
            return ops.stack([log_probs[:, 0], kls[:, 0]], axis=1)

        found = self._read_samples(
            "log_probs and kls", read, samples, weights, batch_size
        )
        return found[:, 0], found[:, 1]

    def _read_samples(self, name, read, samples, weights, batch_size):
        """Reads completions with the policy and another weight set.

        Args:
            name: str. Name of the stage.
            read: function of inputs, and of the hidden states of the policy
                and of the other weight set, that returns a tensor over rows.
            samples, weights, batch_size: see `kls_of`.

        Returns:
            array `(rows, ...)`.
        """
        checks.check_one_of("weights", weights, self.weight_sets.others)
        size = _batch_size(batch_size, len(samples))
        completions = lengths.pad(
            samples.completion_ids, self.max_completion_length
        )
        mask = completions["padding_mask"]
        prompt_lengths = samples.padding_mask.sum(1) - mask.sum(1)
        positions = np.arange(self.max_prompt_length)
        prompt_ids = samples.token_ids[:, : self.max_prompt_length]
        in_prompt = positions[None, :] < prompt_lengths[:, None]
        inputs = {
            "prompt_ids": np.where(in_prompt, prompt_ids, 0).astype("int32"),
            "prompt_lengths": prompt_lengths.astype("int32"),
            "completion_ids": completions["token_ids"][:, None],
            "mask": mask[:, None],
        }

        has_images = IMAGES in samples.columns

        def read_both(inputs):
            hidden = self.reader.hidden(inputs)
            with self.weight_sets.using(weights):
                other = self.reader.hidden(inputs)
            return read(inputs, hidden, other)

        found = []
        for start in range(0, len(samples), size):
            # The last row fills a last, smaller batch: nothing is recompiled.
            rows = np.arange(start, start + size).clip(max=len(samples) - 1)
            batch = {name: array[rows] for name, array in inputs.items()}
            if has_images:
                batch |= self.encoder.image_reader.to_arrays(
                    batch["prompt_ids"],
                    [samples.columns[IMAGES][row] for row in rows],
                )
            batch = {
                name: devices.to_device(devices.own_rows(array))
                for name, array in batch.items()
            }
            batch = self.rollout.embed_images(batch, self.run_stage)
            values = self.run_stage(f"{name} {weights}", read_both, batch)
            found.append(devices.to_every_host(values))
        return np.concatenate(found)[: len(samples)]

    def _draw_all(
        self,
        prompts,
        num_samples,
        batch_size,
        weights,
        seed,
        shows_progress=False,
    ):
        """Draws completions of all prompts, batch by batch.

        Returns:
            a `keras_bond.rewards.Samples`; those of one prompt are adjacent.
        """
        self.check_weights()
        check_count("num_samples", num_samples, 1)
        size = _batch_size(batch_size)
        checks.check_one_of("weights", weights, self.weight_sets.names)
        seed = self.seed if seed is None else standardize.seed_of(seed)
        seed = ops.convert_to_tensor(seed, dtype="int32")
        batches = prompts_lib.to_finite_batches(prompts, self.encoder, size)
        bar = keras.utils.Progbar(
            batches.num_batches, verbose=int(shows_progress), unit_name="batch"
        )
        drawn = []
        for i in range(batches.num_batches):
            (inputs,) = batches[i]
            # The position in `prompts` selects the random numbers, so that the
            # draws do not depend on the batch size.
            first = i * batches.prompts_per_batch
            inputs["index_in_batch"] = first + inputs["index_in_batch"]
            inputs = {k: devices.to_device(v) for k, v in inputs.items()}
            inputs = self.rollout.embed_images(
                self.encoder.cut(inputs), self.run_stage
            )
            arrays = self.run_stage(
                f"draw {num_samples} {weights}",
                lambda inputs, seed: self._draw(
                    inputs, num_samples, weights, seed
                ),
                inputs,
                seed,
            )
            left = len(batches.order) - first
            drawn.append({k: v[:left] for k, v in self._fetch(arrays).items()})
            bar.update(i + 1)
        drawn = {k: np.concatenate([part[k] for part in drawn]) for k in DRAWN}
        return Samples.of_rollout(drawn, batches.table, self.tokenizer)

    def _draw(self, inputs, num_samples, weights, seed):
        stream = Stream(seed, "generate", inputs["index_in_batch"])
        draws = self.rollout.draw(inputs, {weights: num_samples}, stream)
        return self.rollout.collate(inputs, draws)

    def _fetch(self, arrays):
        """Copies arrays to the host and pads whole sequences to one length."""
        arrays = {k: devices.to_every_host(v) for k, v in arrays.items()}
        length = self.max_prompt_length + self.max_completion_length
        for name in ("token_ids", "padding_mask"):
            missing = length - arrays[name].shape[-1]
            arrays[name] = np.pad(arrays[name], [(0, 0), (0, 0), (0, missing)])
        return arrays


def _batch_size(batch_size, most=math.inf):
    """The size of batches that can be sharded, of at most so many rows."""
    size = 32 if batch_size is None else batch_size
    check_count("batch_size", size, 1)
    return lengths.shardable(min(size, most))
