"""Completions of held-out prompts, as records and as blocks to read."""

import contextlib
import html
import re
import typing
import zlib

import numpy as np
import rich.console
import rich.padding
import rich.text

from keras_bond.rewards.cached import canonical_text
from keras_bond.rewards.samples import IMAGES
from keras_bond.rewards.samples import crc32_of_images

# Entries of every record, besides those of the other weight set.
KNOWN = ("step", "prompt", "completion", "reward", "quantile", "gold_reward")
BLOCK_STYLE = "border-top:1px solid #8888;padding:0.5em 0;max-width:60em"
TEXT_STYLE = "white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 0.5em 1em"


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


def show(records, console=None):
    """Shows records as blocks to read, whole: as HTML in a notebook.

    Args:
        records: list of dict of one step, see `records`.
        console: `rich.console.Console`, or `None` for standard output.
    """
    console = console or rich.console.Console()
    if console.is_jupyter:
        from IPython import display

        display.display(display.HTML(to_html(records)))
        return
    console.print()
    console.print(rich.text.Text(_title(records), style="bold"))
    for i, record in enumerate(records):
        console.print()
        console.rule(f"{i + 1} of {len(records)}", align="left", style="dim")
        for head, numbers, text in _parts(record):
            heading = rich.text.Text(head, style="bold")
            console.print(heading.append(numbers, style="not bold dim"))
            if text:
                body = rich.text.Text(text, overflow="fold")
                console.print(rich.padding.Padding(body, (0, 0, 0, 2)))


def to_html(records):
    """Returns records as blocks of HTML, which the browser wraps.

    Args:
        records: list of dict of one step, see `records`.

    Returns:
        str.
    """
    blocks = [f"<p><b>{html.escape(_title(records))}</b></p>"]
    for record in records:
        parts = [
            f"<div><b>{html.escape(head)}</b>"
            f'<span style="opacity:0.7">{html.escape(numbers)}</span></div>'
            f'<div style="{TEXT_STYLE}" dir="auto">{html.escape(text)}</div>'
            for head, numbers, text in _parts(record)
        ]
        blocks.append(f'<div style="{BLOCK_STYLE}">{"".join(parts)}</div>')
    return "".join(blocks)


def to_markdown(records):
    """Returns records as blocks of Markdown, whose texts are code.

    Args:
        records: list of dict of one step, see `records`.

    Returns:
        str.
    """
    blocks = []
    for record in records:
        for head, numbers, text in _parts(record):
            lines = "\n".join("    " + line for line in text.split("\n"))
            blocks.append(f"**{head}**{numbers}\n\n{lines}")
        blocks.append("---")
    return "\n\n".join(blocks)


def _title(records):
    return f"Held-out prompts at step {records[0]['step']}"


def _parts(record):
    """Yields heading, numbers and text of each part of a block."""
    # The first: a reward function may have logged others.
    other = next(
        name.removesuffix("_completion")
        for name in record
        if name.endswith("_completion")
    )
    names = (f"{other}_completion", f"{other}_reward")
    if record["prompt"] is not None:
        yield "prompt", "", _escaped(record["prompt"])
    numbers = _numbers(record, ("reward", "quantile", "gold_reward"))
    yield "policy", numbers, _escaped(record["completion"])
    numbers = _numbers({"reward": record[names[1]]}, ("reward",))
    is_same = record[names[0]] == record["completion"]
    yield (
        "initial policy" if other == "reference" else other,
        numbers + ", the same completion" * is_same,
        "" if is_same else _escaped(record[names[0]]),
    )
    for name, value in record.items():
        if name not in (*KNOWN, *names):
            yield _escaped(name), "", _escaped(value)


def _escaped(value):
    """Text with control characters, which could change the page, spelled."""
    lines = str(value).expandtabs(4).replace("\r\n", "\n").split("\n")
    lines = [
        "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line).rstrip()
        for line in lines
    ]
    # Policies that have learned little write nothing but empty lines.
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _numbers(record, names):
    numbers = [
        f"{name.replace('_', ' ')} {record[name]:.3g}"
        for name in names
        if name in record
    ]
    return ": " + ", ".join(numbers)
