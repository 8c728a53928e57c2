"""Rows of a batch: how many there may be, and what stands in them."""

from keras_bond import backend


def take(columns, rows):
    """Splits off the prompts' text and the columns that a reward may see."""
    chosen = {
        name: [column[row] for row in rows]
        for name, column in columns.items()
        if name != "token_ids"
    }
    return chosen.pop("prompts", None), chosen


def check_spreads(batch_size):
    """Refuses batches that do not spread evenly over the devices.

    Raises:
        ValueError: naming the batch and the parts.
    """
    parts = backend.devices.num_replicas()
    if batch_size % parts:
        raise ValueError(
            "`batch_size` must be a multiple of the number of parts into which "
            "the distribution spreads a batch: choose "
            f"batch_size={spreadable(batch_size)}, or a mesh with a shorter "
            f"batch axis. Received: batch_size={batch_size}, {parts} parts"
        )


def spreadable(num_rows):
    """The next larger batch that spreads evenly over the devices."""
    return num_rows + -num_rows % backend.devices.num_replicas()
