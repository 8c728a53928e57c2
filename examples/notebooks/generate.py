"""Makes the notebooks of this folder: `python examples/notebooks/generate.py`.

Each is a Python file first, which runs, is tested and gives readable diffs:

- the first docstring is the header, lines of `Name: value` (see `HEADER`);
- every other docstring at the top level is a cell of Markdown;
- one that begins with the word `shell` is a cell of shell commands;
- the code between them is cells of code.

`name.py` becomes `name.ipynb` beside it, always the same for the same source.
"""

import ast
import json
import os
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
HEADER = ("Title", "Author", "Date created", "Description", "Accelerator")
# What Colab is to offer.
MACHINES = {
    "TPU": {"accelerator": "TPU", "colab": {"gpuType": "V5E1"}},
    "GPU": {"accelerator": "GPU", "colab": {"gpuType": "T4"}},
    "GPU or TPU": {"accelerator": "GPU", "colab": {"gpuType": "T4"}},
    "None": {},
}
KERNEL = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}


def tutorials():
    """The Python files that are notebooks, by name."""
    files = HERE.glob("*.py")
    return sorted(file for file in files if file.name != "generate.py")


def to_notebook(source):
    """Makes the notebook of a Python file.

    Args:
        source: str. Text of the file.

    Returns:
        str, JSON in the notebook format 4.5, without outputs.

    Raises:
        ValueError: if the header is not the one of `HEADER`.
    """
    parts = _split(source)
    _, header = next(parts, ("", ""))
    header = _parse_header(header)
    cells = [_cell("markdown", _front_page(header))]
    for kind, text in parts:
        if kind == "docstring" and text.startswith("shell\n"):
            kind, text = "code", _as_shell(text.partition("\n")[2])
        cells.append(_cell("code" if kind == "code" else "markdown", text))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number:02}"
    notebook = {
        "cells": cells,
        "metadata": {**KERNEL, **MACHINES[header["Accelerator"]]},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    text = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True)
    return text + "\n"


def _split(source):
    """Yields `("docstring" or "code", text)`, in their order."""
    lines, done = source.splitlines(), 0
    for node in ast.parse(source).body:
        # As it is written: Markdown and shells have backslashes too.
        text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        if isinstance(node, ast.Expr) and text.startswith(('"""', 'r"""')):
            yield from _code(lines[done : node.lineno - 1])
            yield "docstring", text.removeprefix("r").strip('"').strip()
            done = node.end_lineno
    yield from _code(lines[done:])


def _code(lines):
    text = "\n".join(lines).strip("\n")
    if text:
        yield "code", text


def _parse_header(text):
    """Reads `Name: value` lines; a line without a name goes on."""
    header, name = {}, None
    for line in text.splitlines():
        start, colon, rest = line.partition(": ")
        if colon and start in HEADER:
            name, line = start, rest
        header[name] = f"{header.get(name, '')} {line.strip()}".strip()
    missing = [name for name in HEADER if not header.get(name)]
    if missing or header["Accelerator"] not in MACHINES:
        raise ValueError(
            f"A notebook must begin with a docstring of {', '.join(HEADER)}, "
            f"whose accelerator is one of {', '.join(MACHINES)}. "
            f"Received: header={text!r}"
        )
    return header


def _front_page(header):
    accelerator = header["Accelerator"]
    needs = "none, any CPU" if accelerator == "None" else accelerator
    return (
        f"# {header['Title']}\n\n"
        f"**Author:** {header['Author']}<br>\n"
        f"**Date created:** {header['Date created']}<br>\n"
        f"**Description:** {header['Description']}<br>\n"
        f"**Accelerator:** {needs}; minutes are in the table below."
    )


def _as_shell(text):
    """Puts `!` before each command; what continues a line gets none."""
    commands, goes_on = [], False
    for line in text.splitlines():
        commands.append(line if goes_on or not line else f"!{line}")
        goes_on = line.endswith("\\")
    return "\n".join(commands)


def _cell(kind, text):
    cell = {
        "cell_type": kind,
        "metadata": {},
        "source": text.splitlines(keepends=True),
    }
    if kind == "code":
        cell.update(execution_count=None, outputs=[])
    return cell


def main():
    for file in tutorials():
        notebook = file.with_suffix(".ipynb")
        fresh = file.with_suffix(".ipynb.new")
        fresh.write_text(to_notebook(file.read_text("utf-8")), "utf-8")
        os.replace(fresh, notebook)
        print(f"Wrote {notebook.name}")


if __name__ == "__main__":
    main()
