"""The least that a step of J-BOND has to compute and to move.

A multiplication with an addition counts as two operations (FLOP), numbers are
float32. Counted are the products of the network, and as memory traffic what no
cache of activations can save: weights, the key-value cache, and what the
optimizer and the anchor keep. Attention is counted dense over the row, as all
contenders compute it. Softmax, norms and sampling are not counted, so that no
program can reach these numbers; how far one is from them is what is measured.

Reference: Williams, Waterman and Patterson, "Roofline: an insightful visual
performance model", CACM 2009.
"""

import typing

NUMBER = 4
# Reads weight, gradient and both moments; writes weight and both moments.
ADAM_TRAFFIC = 7
# Reads policy and anchor, writes the anchor.
ANCHOR_TRAFFIC = 3


class Cost(typing.NamedTuple):
    """What a phase computes and moves.

    Attributes:
        flops: float.
        bytes: float.
    """

    flops: float
    bytes: float


def seconds(costs, machine):
    """`Σ max(flops / rate, bytes / rate)` over what follows upon another.

    Args:
        costs: list of `Cost`.
        machine: dict with `flops` and `bytes`, both a second.
    """
    return sum(
        max(cost.flops / machine["flops"], cost.bytes / machine["bytes"])
        for cost in costs
    )


def bound(costs, machine):
    """Which of `"compute"` and `"memory"` most of the least time waits for."""
    computing = sum(
        cost.flops / machine["flops"]
        for cost in costs
        if cost.flops / machine["flops"] >= cost.bytes / machine["bytes"]
    )
    return "compute" if 2 * computing > seconds(costs, machine) else "memory"


def weights_bytes(shape):
    """All weights once; the embedding serves as the head as well."""
    blocks = shape.layers * shape.layer_weights
    return NUMBER * (blocks + shape.embedding_weights)


def forward(shape, rows, length, head_positions, context=None):
    """One parallel pass over rows.

    Args:
        shape: a `speed_shapes.Shape`.
        rows: int.
        length: int. Tokens a row.
        head_positions: int. Tokens a row whose logits are wanted.
        context: int. Tokens that each token attends to. Defaults to `length`.
    """
    context = 4 * shape.heads * shape.head_dim * (context or length)
    block = 2 * shape.layer_weights + context
    head = 2 * shape.embedding_weights
    flops = rows * (length * shape.layers * block + head_positions * head)
    return Cost(flops, weights_bytes(shape))


def read(shape, samples):
    """One parallel pass over prompts and their completions.

    A prompt is the beginning of all of its completions' rows, and counts once.

    Args:
        shape: a `speed_shapes.Shape`.
        samples: int. Completions a prompt.
    """
    rows, length = shape.prompts * samples, shape.completion_length
    prompts = forward(shape, shape.prompts, shape.prompt_length, 0)
    completions = forward(shape, rows, length, length, shape.length)
    return Cost(prompts.flops + completions.flops, completions.bytes)


def decode(shape, rows):
    """Draws a completion for each row, token by token.

    Every token reads all weights and the cache of all tokens before it.
    """
    costs = []
    for context in range(shape.prompt_length, shape.length):
        block = 2 * shape.layer_weights
        block += 4 * shape.heads * shape.head_dim * (context + 1)
        head = 2 * shape.embedding_weights
        cache = 2 * shape.layers * shape.kv_heads * shape.head_dim
        costs.append(
            Cost(
                rows * (shape.layers * block + head),
                weights_bytes(shape) + NUMBER * rows * cache * (context + 1),
            )
        )
    return costs


def rollout(shape, samples):
    """Reads each prompt once and draws its completions.

    Args:
        shape: a `speed_shapes.Shape`.
        samples: int. Completions a prompt, drawn with the same weights.
    """
    prefill = forward(shape, shape.prompts, shape.prompt_length, 0)
    return [prefill, *decode(shape, shape.prompts * samples)]


def score_with_anchor(shape):
    """The anchor's log-probabilities of the policy's samples.

    With LoRA, those of the reference as well.
    """
    once = read(shape, shape.policy_samples)
    passes = 2 if shape.lora_rank and shape.reference else 1
    return passes * [once]


def learn(shape):
    """Forward and backward pass, Adam, and the anchor's update.

    The backward pass has two products for each of the forward pass, by the
    weights and by the activations; with LoRA the weights are frozen and want
    no gradient. A gradient is written once.
    """
    once = read(shape, shape.learned_samples)
    passes = 2 if shape.lora_rank else 3
    numbers = ADAM_TRAFFIC + ANCHOR_TRAFFIC + 1
    traffic = NUMBER * numbers * shape.trained_parameters
    return [Cost(passes * once.flops, passes * once.bytes + traffic)]


def phases(shape):
    """The costs of the phases by the names that a step gives them.

    Returns:
        dict from names to lists of `Cost`.
    """
    policy = rollout(shape, shape.policy_samples)
    anchor = rollout(shape, shape.anchor_samples)
    return {
        "rollout policy": policy,
        "rollout anchor": anchor,
        "rollout policy and anchor": [
            forward(shape, 2 * shape.prompts, shape.prompt_length, 0),
            *decode(shape, shape.prompts * shape.samples),
        ],
        "score_with_anchor": score_with_anchor(shape),
        "learn": learn(shape),
        "decode": rollout(shape, shape.samples),
    }


def step(shape):
    """All that a step cannot do without."""
    found = phases(shape)
    # With LoRA the policy and the anchor are drawn from in one loop.
    drawn = ("rollout policy", "rollout anchor")
    if shape.lora_rank:
        drawn = ("rollout policy and anchor",)
    names = (*drawn, "score_with_anchor", "learn")
    return [cost for name in names for cost in found[name]]
