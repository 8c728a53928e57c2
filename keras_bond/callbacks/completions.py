"""Completions of held-out prompts, as records and as a table to read."""

import contextlib
import typing
import zlib

import numpy as np
import rich.console
import rich.table
import rich.text

from keras_bond.rewards.cached import canonical_text
from keras_bond.rewards.samples import IMAGES
from keras_bond.rewards.samples import crc32_of_images

# Entries of every record, besides those of the other weight set.
KNOWN = ("step", "prompt", "completion", "reward", "quantile", "gold_reward")
# What a cell of the table shows of a text.
MAX_CHARACTERS = 400


class Answers(typing.NamedTuple):
    """Completions of another weight set for the same prompts.

    Attributes:
        weights: str. Name of the weight set.
        samples: `keras_bond.rewards.Samples`, drawn with the random numbers
            of the policy's samples. The first of each prompt is shown.
        rewards: float64 array `(prompts, num_samples)`, of `samples`.
        pool: float64 array `(prompts, pool)`. Rewards of independent samples
            that the first of the policy is compared with.
    """

    weights: str
    samples: object
    rewards: np.ndarray
    pool: np.ndarray


def anchor_answers(samples, rewards):
    """The `Answers` of the anchor: the first is shown, the others compared."""
    return Answers("anchor", samples, rewards, rewards[:, 1:])


def records(step, samples, rewards, other, gold=None):
    """One dict for each prompt, about its first completion.

    Args:
        step: int. Optimizer updates.
        samples: `keras_bond.rewards.Samples` of the policy.
        rewards: float64 array `(prompts, num_samples)`.
        other: `Answers`, beside which the policy's are shown.
        gold: float64 array of the shape of `rewards`, or `None`.

    Returns:
        list of dict with `step`, `prompt`, `completion`, `reward`, completion
        and reward of the other weight set under its name, `quantile`, the
        share of its pool with a lower reward, ties counting one half,
        `gold_reward` if there is one, and the columns that reward functions
        logged with `log_extra`.

    Raises:
        ValueError: if such a column has the name of another entry.
    """
    columns = {
        "prompt": _first_of_each(samples.prompts, samples),
        "completion": _first_completions(samples),
        "reward": rewards[:, 0].tolist(),
        f"{other.weights}_completion": _first_completions(other.samples),
        f"{other.weights}_reward": other.rewards[:, 0].tolist(),
        "quantile": _quantiles(rewards[:, :1], other.pool),
    }
    if gold is not None:
        columns["gold_reward"] = gold[:, 0].tolist()
    extra = {
        name: _first_of_each(values, samples)
        for name, values in samples.log.columns.items()
    }
    taken = sorted({*KNOWN, *columns} & set(extra))
    if taken:
        raise ValueError(
            "`log_extra` must not be given the name of a column that the table "
            f"of completions has anyway: use another. Received: {taken}"
        )
    columns.update(extra)
    rows = zip(*columns.values())
    return [{"step": step, **dict(zip(columns, row))} for row in rows]


def fingerprint(samples):
    """What tells the prompts of samples from others, in their order.

    Args:
        samples: `keras_bond.rewards.Samples`.

    Returns:
        dict of int: `count`, and `crc32` of their texts, or of their token ids
        without a tokenizer, of their images and of the other columns, except
        for values whose text may not be their whole value.
    """
    rows = range(0, len(samples), samples.num_samples)
    columns = dict(samples.columns)
    images, crc = columns.pop(IMAGES, None), 0
    for row in rows:
        crc = zlib.crc32(_prompt_bytes(samples, row), crc)
        crc = crc32_of_images([] if images is None else images[row], crc)
        for name in sorted(columns):
            with contextlib.suppress(TypeError):
                text = canonical_text([name, columns[name][row]])
                crc = zlib.crc32(text.encode(), crc)
    return {"count": len(rows), "crc32": crc}


def _prompt_bytes(samples, row):
    if samples.prompts is not None:
        return repr(samples.prompts[row]).encode()
    length = samples.padding_mask[row].sum() - len(samples.completion_ids[row])
    return repr(samples.token_ids[row][:length].tolist()).encode()


def _first_completions(samples):
    if samples.completions is None:
        ids = _first_of_each(samples.completion_ids, samples)
        return [str(list(row)) for row in ids]
    return _first_of_each(samples.completions, samples)


def _first_of_each(values, samples):
    if values is None:
        return [None] * (len(samples) // samples.num_samples)
    return list(values[:: samples.num_samples])


def _quantiles(rewards, pool):
    if not pool.shape[1]:
        return [np.nan] * len(rewards)
    below = (pool < rewards).mean(axis=1)
    return (below + 0.5 * (pool == rewards).mean(axis=1)).tolist()


def print_table(records, console=None):
    """Prints records as a table in the width of the terminal.

    Args:
        records: list of dict of one step, see `records`.
        console: `rich.console.Console`, or `None` for standard output.
    """
    # The first: a reward function may have logged others.
    other = next(
        name.removesuffix("_completion")
        for name in records[0]
        if name.endswith("_completion")
    )
    known = (*KNOWN, f"{other}_completion", f"{other}_reward")
    extra = [name for name in records[0] if name not in known]
    table = rich.table.Table(
        "prompt",
        "policy",
        "initial policy" if other == "reference" else other,
        *[rich.table.Column(_text(name)) for name in extra],
        title=f"Held-out prompts at step {records[0]['step']}",
        title_justify="left",
        show_lines=True,
    )
    for record in records:
        table.add_row(
            _text(record["prompt"]),
            _text(record["completion"])
            + _numbers(record, ("reward", "quantile", "gold_reward")),
            _text(record[f"{other}_completion"])
            + _numbers({"reward": record[f"{other}_reward"]}, ("reward",)),
            *[_text(record[name]) for name in extra],
        )
    console = console or rich.console.Console()
    console.print()
    console.print(table)


def _text(value):
    text = " ".join(str(value).split())
    if len(text) > MAX_CHARACTERS:
        text = text[: MAX_CHARACTERS - 1] + "…"
    # Control characters of a completion could change the terminal.
    escaped = [c if c.isprintable() else ascii(c)[1:-1] for c in text]
    return rich.text.Text("".join(escaped))


def _numbers(record, names):
    numbers = [
        f"{name.replace('_', ' ')} {record[name]:.3g}"
        for name in names
        if name in record
    ]
    return rich.text.Text("\n" + ", ".join(numbers), style="dim")
