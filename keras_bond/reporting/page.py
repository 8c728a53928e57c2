"""Numbers, pictures and completions of a run on one page."""

import html
import math
import pathlib

from keras_bond import files
from keras_bond.evaluation import plots
from keras_bond.reporting import curves
from keras_bond.reporting.run_files import read_run

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem;
       margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem; }
th, td { border-bottom: 1px solid #ddd; padding: .4rem .6rem;
         text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.text { white-space: pre-wrap; }
svg { max-width: 100%; height: auto; }
"""
# What one asks first, with what it means.
HEADLINES = (
    ("reward", "mean reward of the policy"),
    ("anchor/reward", "mean reward of the anchor"),
    ("best_of_n/effective_n", "the N of Best-of-N that one sample is worth"),
    ("gold/reward", "mean of the held-out reward"),
    ("bond/win_rate", "how often the policy beats the anchor"),
    ("kl_ref", "KL to the start, nats a sequence"),
    ("kl", "KL to the anchor, nats a sequence"),
)
TEXTS = ("prompt", "policy", "anchor")
NUMBERS = ("reward", "its reward", "quantile")


def write_report(folder):
    """Writes `report.html` into a run's folder.

    The page stands alone: pictures are in it, and it loads nothing.

    Args:
        folder: path, see `read_run`.

    Returns:
        `pathlib.Path` of the page.

    Raises:
        FileNotFoundError, ValueError: see `read_run`.
        ImportError: if there are curves to draw and matplotlib is missing.
    """
    page = render(pathlib.Path(folder).resolve().name, read_run(folder))
    path = pathlib.Path(folder) / "report.html"
    with files.atomic_file(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def render(name, run):
    """Lays out the page.

    Args:
        name: str. Of the run.
        run: a `Run`.

    Returns:
        str, HTML.
    """
    parts = [f"<h1>{html.escape(name)}</h1>"]
    if run.numbers:
        parts += ["<h2>First and last epoch</h2>", _headlines(run.numbers)]
    if run.best_of_n:
        figure = plots.plot_best_of_n(**run.best_of_n)
        parts += ["<h2>Against Best-of-N of the start</h2>"]
        parts += [curves.as_svg(figure)]
    if run.numbers:
        parts += ["<h2>Curves</h2>", curves.draw(run.numbers)]
    if run.completions:
        parts += ["<h2>Completions</h2>", _completions(run.completions)]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(name)}</title>\n<style>{STYLE}</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _headlines(numbers):
    rows = [
        (name, meaning, numbers[name][0], numbers[name][-1])
        for name, meaning in HEADLINES
        if name in numbers
    ]
    return _table(("name", "meaning", "first", "last"), rows)


def _completions(records):
    """The first and the last table of the run."""
    steps = sorted({record["step"] for record in records})
    tables = []
    for step in dict.fromkeys((steps[0], steps[-1])):
        rows = [
            [record.get(name, "") for name in (*TEXTS, *NUMBERS)]
            for record in records
            if record["step"] == step
        ]
        tables.append(f"<h3>Step {step}</h3>")
        tables.append(_table((*TEXTS, *NUMBERS), rows))
    return "\n".join(tables)


def _table(names, rows):
    def cell(value):
        if isinstance(value, (int, float)):
            text = "–" if math.isnan(value) else f"{value:.4g}"
            return f'<td class="number">{text}</td>'
        return f'<td class="text">{html.escape(str(value))}</td>'

    is_number = [isinstance(value, (int, float)) for value in rows[0]]
    head = "".join(
        f'<th class="number">{name}</th>' if right else f"<th>{name}</th>"
        for name, right in zip(names, is_number)
    )
    body = "\n".join(
        "<tr>" + "".join(cell(value) for value in row) + "</tr>" for row in rows
    )
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"
