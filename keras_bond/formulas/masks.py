"""Masks of completion tokens, in which `True` means keep."""

from keras import ops


def is_any_of(token_ids, stop_token_ids):
    """Marks the positions that hold one of `stop_token_ids`.

    Args:
        token_ids: int tensor of any shape.
        stop_token_ids: tuple of int.

    Returns:
        bool tensor of the shape of `token_ids`.
    """
    found = ops.zeros_like(token_ids, dtype="bool")
    for stop_token_id in stop_token_ids:
        found = ops.logical_or(found, ops.equal(token_ids, stop_token_id))
    return found


def completion_mask(completion_ids, stop_token_ids):
    """Marks the tokens of each completion, its end token included.

    The end token is part of the completion: `log π(y)` includes the
    probability of stopping. Tokens after it are masked out. A completion that
    was truncated at the length limit has no end token and is kept whole.

    Args:
        completion_ids: int tensor `(rows, length)`, completions only: a
            stop token inside a prompt ends nothing.
        stop_token_ids: tuple of int.

    Returns:
        bool tensor `(rows, length)`.
    """
    ends = ops.cast(is_any_of(completion_ids, stop_token_ids), "int32")
    ends_before = ops.cumsum(ends, axis=-1) - ends
    return ops.equal(ends_before, 0)


def is_terminated(completion_ids, stop_token_ids):
    """Which completions reached an end token.

    Args:
        completion_ids: int tensor `(rows, length)`.
        stop_token_ids: tuple of int.

    Returns:
        bool tensor `(rows,)`.
    """
    return ops.any(is_any_of(completion_ids, stop_token_ids), axis=-1)


def used_first(mask):
    """Orders tokens so that those that count come first.

    Args:
        mask: bool tensor `(tokens,)`.

    Returns:
        `(order, places)`: int32 tensors `(tokens,)`, the tokens in their new
        order, and the place of each token in it.
    """
    counts = ops.cast(mask, "int32")
    kept, masked = ops.cumsum(counts), ops.cumsum(1 - counts)
    places = ops.where(mask, kept, ops.sum(counts) + masked) - 1
    return ops.argsort(places), places
