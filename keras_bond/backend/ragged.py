"""Completions sorted by length, in groups of rows that are truncated."""

import math

import numpy as np
from keras import ops
from keras import tree

from keras_bond import backend
from keras_bond.backend import devices

# Where shapes are fixed when a program is compiled: shares of the rows, longest
# first, and how much of the completion length they keep. Lengths that are
# geometric with a mean of a quarter of it fit, and leave half of the tokens.
SHARES = ((1 / 4, 1.0), (1 / 4, 1 / 2), (1 / 2, 1 / 4))
# The network is compiled once per group and once for whole rows, which takes
# about twice as long: runs with fewer or shorter rows are mostly short, too.
MIN_ROWS, MIN_LENGTH = 16, 128
# Where shapes may change: tokens that make another group worth its overhead.
TOKENS_PER_GROUP, MAX_GROUPS = 512, 8


def groups_for(mask):
    """Returns groups for completions, and whether these fit into them.

    Args:
        mask: bool tensor `(..., completion_length)`.

    Returns:
        `(groups, fits)`: tuple of `(rows, length)`, longest first, and a bool
        tensor; `(None, False)` if sorting would bring nothing.
    """
    *leading, length = mask.shape
    rows = int(np.prod(leading))
    if devices.num_replicas() > 1:
        # Sorting would move rows from one device to another.
        return None, False
    lengths = ops.sum(ops.cast(ops.reshape(mask, (rows, length)), "int32"), 1)
    if backend.name == "torch":
        return _exact_groups(ops.convert_to_numpy(lengths)), True
    if rows < MIN_ROWS or length < MIN_LENGTH:
        return None, False
    groups = _fixed_groups(rows, length)
    limits = np.concatenate([np.full(n, limit) for n, limit in groups])
    longest_first = -ops.sort(-lengths)
    return groups, ops.all(longest_first <= limits.astype("int32"))


def _fixed_groups(rows, length):
    groups, left = [], rows
    for share, part in SHARES:
        taken = min(left, math.ceil(rows * share))
        groups.append((taken, math.ceil(length * part)))
        left -= taken
    return tuple(groups)


def _exact_groups(lengths):
    longest_first = np.maximum(-np.sort(-lengths), 1)
    rows, tokens = len(lengths), len(lengths) * int(longest_first[0])
    count = int(np.clip(tokens // TOKENS_PER_GROUP, 1, min(rows, MAX_GROUPS)))
    parts = np.array_split(longest_first, count)
    return tuple((len(part), int(part[0])) for part in parts)


def sort(rows, groups):
    """Sorts rows by length and truncates them.

    Args:
        rows: dict of tensors `(rows, ...)` with `completion_ids` and `mask`
            `(rows, completion_length)`; maybe nested.
        groups: see `groups_for`.

    Returns:
        `(parts, places)`: list of dicts of tensors, one per group, and int32
        tensor `(rows,)`, the place of each row among the sorted ones.
    """
    lengths = ops.sum(ops.cast(rows["mask"], "int32"), axis=1)
    order = ops.argsort(-lengths)
    parts, start = [], 0
    for count, length in groups:
        chosen = order[start : start + count]
        part = tree.map_structure(
            lambda x, chosen=chosen: ops.take(x, chosen, axis=0), rows
        )
        for name in ("completion_ids", "mask"):
            part[name] = part[name][:, :length]
        parts.append(part)
        start += count
    return parts, ops.argsort(order)


def num_parts(group, rows, length, parts):
    """Parts of a group that are no larger than parts of all rows.

    Args:
        group: tuple of int. Rows of the group and tokens per row.
        rows, length: int. All rows and their tokens.
        parts: int. Number of parts of all rows.

    Returns:
        int that divides the rows of the group.
    """
    count, tokens = group
    return next(
        n
        for n in range(1, count + 1)
        if count % n == 0
        and (n == count or count // n * tokens * parts <= rows * length)
    )
