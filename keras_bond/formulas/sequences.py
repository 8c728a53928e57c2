"""Layout of prompt and completion in one row of tokens.

A row begins with its prompt, its completion follows directly, and padding comes
last. Completions therefore begin at a different position in each row.
"""

from keras import ops

from keras_bond.formulas import masks


def join(prompt_ids, prompt_lengths, completion_ids):
    """Appends each completion to its prompt.

    Args:
        prompt_ids: int32 tensor `(rows, prompt_length)`, padded on the right.
        prompt_lengths: int32 tensor `(rows,)`.
        completion_ids: int32 tensor `(rows, completion_length)`.

    Returns:
        int32 tensor `(rows, prompt_length + completion_length)`, padded with 0.
    """
    total = prompt_ids.shape[1] + completion_ids.shape[1]
    positions = ops.arange(total, dtype="int32")[None, :]
    offsets = positions - prompt_lengths[:, None]
    last = completion_ids.shape[1] - 1
    from_completion = ops.take_along_axis(
        completion_ids, ops.clip(offsets, 0, last), axis=1
    )
    prompts = ops.pad(prompt_ids, [(0, 0), (0, completion_ids.shape[1])])
    joined = ops.where(offsets < 0, prompts, from_completion)
    return ops.where(offsets > last, 0, joined)


def completion_window(values, prompt_lengths, completion_length, shift=0):
    """Slices the completion of each row out of a tensor over whole rows.

    Args:
        values: tensor `(rows, total_length, ...)`.
        prompt_lengths: int32 tensor `(rows,)`.
        completion_length: int.
        shift: int. -1 takes the position BEFORE each completion token, whose
            output predicts the token. Defaults to 0.

    Returns:
        tensor `(rows, completion_length, ...)`.
    """
    offsets = ops.arange(completion_length, dtype="int32")[None, :]
    indices = prompt_lengths[:, None] + offsets + shift
    indices = ops.reshape(indices, (*indices.shape, *[1] * (values.ndim - 2)))
    return ops.take_along_axis(values, indices, axis=1)


def at_last_token(values, padding_mask):
    """Takes the value at the last token of each row that is not padding.

    Args:
        values: tensor `(rows, length, width)`.
        padding_mask: bool tensor `(rows, length)`, padding on the right.

    Returns:
        tensor `(rows, width)`.
    """
    lengths = ops.sum(ops.cast(padding_mask, "int32"), axis=1)
    last = (lengths - 1)[:, None, None]
    return ops.take_along_axis(values, last, axis=1)[:, 0]


def repeat_rows(values, num_samples):
    """Repeats every row `num_samples` times; copies are adjacent."""
    return ops.repeat(values, num_samples, axis=0)


def repeat_in_groups(values, counts):
    """Repeats the rows of each group, row i of a group `counts[i]` times.

    Args:
        values: tensor `(groups * len(counts), ...)`.
        counts: tuple of int.

    Returns:
        tensor `(groups * sum(counts), ...)`; copies are adjacent.
    """
    groups = ops.reshape(values, (-1, len(counts), *values.shape[1:]))
    repeated = [
        ops.repeat(groups[:, i : i + 1], count, axis=1)
        for i, count in enumerate(counts)
    ]
    if len(counts) > 1:
        repeated = [ops.concatenate(repeated, axis=1)]
    return ops.reshape(repeated[0], (-1, *values.shape[1:]))


def take_samples(tensors, chosen):
    """Selects samples of each prompt.

    Args:
        tensors: dict of tensors `(batch, samples, ...)`.
        chosen: int32 tensor `(batch, kept)`. Indices of the samples to keep.

    Returns:
        dict of tensors `(batch, kept, ...)`.
    """
    return {
        name: ops.take_along_axis(
            tensor,
            ops.reshape(chosen, (*chosen.shape, *[1] * (tensor.ndim - 2))),
            axis=1,
        )
        for name, tensor in tensors.items()
    }


def collate(prompt_ids, prompt_lengths, completion_ids, stop_token_ids):
    """Computes masks and whole sequences of sampled completions.

    Args:
        prompt_ids: int32 tensor `(batch, prompt_length)`.
        prompt_lengths: int32 tensor `(batch,)`.
        completion_ids: int32 tensor `(batch, samples, completion_length)`.
        stop_token_ids: tuple of int.

    Returns:
        dict of tensors over `(batch, samples)`: `completion_ids` as given;
        `mask` bool `(..., completion_length)`, see `completion_mask`;
        `terminated` bool `(...)`; `token_ids` int32 and `padding_mask` bool
        `(..., prompt_length + completion_length)`, prompt and completion in
        one row.
    """
    batch_size, num_samples, length = completion_ids.shape
    rows = ops.reshape(completion_ids, (-1, length))
    lengths = repeat_rows(prompt_lengths, num_samples)
    mask = masks.completion_mask(rows, stop_token_ids)
    token_ids = join(repeat_rows(prompt_ids, num_samples), lengths, rows)
    ends = lengths + ops.sum(ops.cast(mask, "int32"), axis=1)
    positions = ops.arange(token_ids.shape[1], dtype="int32")
    described = {
        "mask": mask,
        "token_ids": token_ids,
        "padding_mask": positions[None, :] < ends[:, None],
    }
    return {
        "completion_ids": completion_ids,
        "terminated": masks.is_terminated(completion_ids, stop_token_ids),
        **{
            name: ops.reshape(tensor, (batch_size, num_samples, -1))
            for name, tensor in described.items()
        },
    }
