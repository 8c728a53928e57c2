"""Draws completions for a whole list of prompts."""

import keras
from keras import ops

from keras_bond import backend
from keras_bond import data
from keras_bond import formulas
from keras_bond import rollouts
from keras_bond.arguments import check_count
from keras_bond.training import checks


def draw_tokens(
    trainer, prompts, num_samples, batch_size, weights, seed, shows_progress
):
    """Draws completions from the full distribution, as training does.

    Args:
        trainer: a `keras_bond.training.policy_trainer.PolicyTrainer`.
        prompts, num_samples, batch_size, weights: see its `generate`.
        seed: int.
        shows_progress: bool.

    Returns:
        `(batches, drawn)`: the `keras_bond.data.PromptBatches`, and a list of
        lists of int, prompt by prompt and sample by sample.
    """
    check_count("num_samples", num_samples, 1)
    checks.check_one_of("weights", weights, ("policy", *trainer.weight_sets))
    batch_size = data.spreadable(32 if batch_size is None else batch_size)
    batches = data.to_batches(prompts, trainer.encoder, batch_size)
    draw = trainer._stages.setdefault(
        f"draw {num_samples} {weights}",
        backend.compile_forward(
            lambda inputs, seed: _draw(
                trainer, inputs, seed, num_samples, weights
            ),
            trainer.variables,
        ),
    )
    return batches, draw_all(draw, batches, seed, shows_progress)


def _draw(trainer, inputs, seed, num_samples, weights):
    uniforms = rollouts.uniform(
        seed,
        "generate",
        inputs["places"],
        num_samples,
        trainer.max_completion_length,
    )
    with trainer.using(weights):
        draws = trainer.decoder(
            inputs["prompt_ids"], inputs["prompt_lengths"], uniforms
        )
    ids = backend.devices.gathered(draws["completion_ids"])
    return ids, formulas.completion_mask(ids, trainer.stop_token_ids)


def text_of(codec, source, rows, drawn, num_samples):
    """Prompts, completions and columns of drawn tokens, one for each sample.

    Args:
        codec: a `keras_bond.data.TextCodec`, or `None`.
        source: what the prompts came from; tells text and columns of a row.
        rows: sequence of int. Row numbers of the prompts.
        drawn: list of lists of int, sample by sample of each prompt.
        num_samples: int.

    Returns:
        `(prompts, completions, columns)`: lists of str, `None` without a
        codec, and a dict of lists.
    """
    prompts, columns = source.take(rows)
    prompts = prompts and spread(prompts, num_samples)
    columns = {k: spread(v, num_samples) for k, v in columns.items()}
    return prompts, codec and codec.decode(drawn), columns


def spread(values, num_samples):
    """Repeats each value for every sample of its prompt."""
    return [value for value in values for _ in range(num_samples)]


def draw_all(draw, batches, seed, shows_progress):
    """Draws for every batch and returns the tokens that count.

    Args:
        draw: compiled function of `(inputs, seed)` that returns token ids and
            their mask, `(batch, num_samples, length)` each.
        batches: a `keras_bond.data.PromptBatches`.
        seed: int.
        shows_progress: bool.

    Returns:
        list of lists of int, prompt by prompt and sample by sample.
    """
    drawn = []
    bar = keras.utils.Progbar(
        batches.num_batches, verbose=int(shows_progress), unit_name="batch"
    )
    for i in range(batches.num_batches):
        (inputs,) = batches[i]
        first = i * batches.prompts_per_batch
        # Rows are numbered by their place, so the batch size changes nothing.
        inputs["places"] = first + inputs["places"]
        inputs = {k: backend.devices.to_device(v) for k, v in inputs.items()}
        ids, mask = draw(
            batches.encoder.cut(inputs),
            ops.convert_to_tensor(seed, dtype="int32"),
        )
        drawn += _tokens(ids, mask, len(batches.order) - first)
        bar.update(i + 1)
    return drawn


def _tokens(ids, mask, num_prompts):
    """The tokens that count, of the first prompts: the rest only fill."""
    ids = backend.devices.to_host(ids)[:num_prompts]
    mask = backend.devices.to_host(mask)[:num_prompts]
    length = ids.shape[-1]
    pairs = zip(ids.reshape(-1, length), mask.reshape(-1, length))
    return [row[kept].tolist() for row, kept in pairs]
