"""The least time of a step at a chip's rates: a bound, no measurement."""

import math

# Part of the path of weights of which a token needs one row.
LOOKED_UP = "per_layer_token_embedding"


def least(trainer, arguments, chip, num_chips):
    """Says how long a drawn token and a step take at least, and of what.

    Every drawn token reads all weights and the key-value cache once, with LoRA
    once for the samples of policy and anchor together; a token that is read
    costs two operations a weight, and one that is learned from six, or four
    where only adapters are trained. Not counted are Gemma 4's per-layer
    embeddings, of which a token needs one row.

    Args:
        trainer: a `keras_bond.JBond`.
        arguments: with `prompts`, `prompt_length`, `completion_length`, `lora`.
        chip: a `chips.Chip`.
        num_chips: int.

    Returns:
        str.
    """
    used = [v for v in trainer.policy.variables if LOOKED_UP not in v.path]
    weights = sum(math.prod(v.shape) for v in used)
    num_bytes = sum(
        math.prod(v.shape) * (2 if "bfloat16" in v.dtype else 4) for v in used
    )
    length = arguments.prompt_length + arguments.completion_length
    of_weights = of_cache = 0.0
    counts = {
        "policy": trainer.num_policy_samples,
        "anchor": trainer.num_anchor_samples,
    }
    for drawn in trainer.rollout.plan_draws({}, counts):
        cache = trainer.decoder.cache_builder.num_bytes(
            arguments.prompts * sum(drawn.values()), length
        )
        of_weights += num_bytes / (chip.bandwidth * num_chips)
        of_cache += cache / (chip.bandwidth * num_chips)
    rows = arguments.prompts
    prompt_tokens = 2 * rows * arguments.prompt_length
    read_again = rows * trainer.num_policy_samples * length
    learned = rows * (trainer.num_policy_samples + 1) * length
    per_token = 4 if arguments.lora else 6
    if not arguments.no_rematerialize:
        per_token += 2
    operations = 2 * (prompt_tokens + read_again) + per_token * learned
    computing = operations * weights / (chip.flops * num_chips)
    token = of_weights + of_cache
    decoding = token * arguments.completion_length
    return (
        f"Least time of a token of all samples on {num_chips} chips: "
        f"{1e3 * token:.2f} ms ({1e3 * of_weights:.2f} ms of weights, "
        f"{1e3 * of_cache:.2f} ms of the cache, each read once). Least time of "
        f"a step: {decoding:.2f} s of decoding, {computing:.2f} s of the rest "
        "(operations at the chip's peak)."
    )
