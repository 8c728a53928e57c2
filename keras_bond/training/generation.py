"""Draws completions for a whole list of prompts."""

import keras
from keras import ops

from keras_bond import backend
from keras_bond import formulas
from keras_bond import rollouts
from keras_bond.arguments import check_count
from keras_bond.data import lengths
from keras_bond.data import prompts as prompts_lib
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
        `(batches, drawn)`: the `PromptBatches`, and a list of
        lists of int, prompt by prompt and sample by sample.
    """
    check_count("num_samples", num_samples, 1)
    checks.check_one_of("weights", weights, ("policy", *trainer.weight_sets))
    batch_size = lengths.shardable(32 if batch_size is None else batch_size)
    batches = prompts_lib.to_batches(prompts, trainer.encoder, batch_size)
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
        inputs["index_in_batch"],
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
    """What `Samples` says of drawn tokens in words, one for each sample.

    Args:
        codec: a `TextTokenizer`, or `None`.
        source: what the prompts came from; tells text and columns of a row.
        rows: sequence of int. Row numbers of the prompts.
        drawn: list of lists of int, sample by sample of each prompt.
        num_samples: int.

    Returns:
        dict of `prompts`, `completions`, `columns` and `conversations`.
    """
    table = source.take(rows).repeat(num_samples)
    return {
        "prompts": table.prompts,
        "completions": codec and codec.decode(drawn),
        "columns": table.columns,
        "conversations": table.conversations,
    }


def draw_all(draw, batches, seed, shows_progress):
    """Draws for every batch and returns the tokens that count.

    Args:
        draw: compiled function of `(inputs, seed)` that returns token ids and
            their mask, `(batch, num_samples, length)` each.
        batches: a `PromptBatches`.
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
        inputs["index_in_batch"] = first + inputs["index_in_batch"]
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
