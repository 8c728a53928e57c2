"""Makes the notebooks of this folder: `python examples/notebooks/generate.py`.

    python examples/notebooks/generate.py --execute [quickstart ...]

runs those of `EXECUTED`, too, or the named ones of them, and writes their
outputs. Without it the outputs stay, unless the code is another.

Each is a Python file first, which runs, is tested and gives readable diffs:

- the first docstring is the header, lines of `Name: value` (see `HEADER`);
- every other docstring at the top level is a cell of Markdown;
- one that begins with the word `install` is a cell that installs this package
  and the packages that it names;
- the code between them is cells of code.

`name.py` becomes `name.ipynb` beside it, always the same for the same source,
outputs apart.
"""

import argparse
import ast
import json
import os
import pathlib
import re

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Those that are shown with outputs, and whether of a run at small scale. The
# Gemma notebooks need presets from Kaggle, or a TPU.
EXECUTED = {
    "quickstart": False,
    "summarization_reward_model": True,
    "gsm8k_verifiable_rewards": True,
    "steering_style": True,
    "migrating_from_trl": True,
    "export_and_serve": True,
}
HEADER = ("Title", "Author", "Date created", "Description", "Accelerator")
# What Colab is to offer.
MACHINES = {
    "TPU": {"accelerator": "TPU", "colab": {"gpuType": "V5E1"}},
    "GPU": {"accelerator": "GPU", "colab": {"gpuType": "T4"}},
    "GPU or TPU": {"accelerator": "GPU", "colab": {"gpuType": "T4"}},
    "None": {},
}
# What Keras and KerasHub need, beside NumPy and TensorFlow Text.
LIGHT = (
    "absl-py h5py kagglehub kagglesdk==0.1.28 ml-dtypes namex optree packaging "
    "regex rich sentencepiece tokenizers"
)
INSTALL = """\
# JAX, NumPy, PyTorch and TensorFlow of the image stay as they are.
!pip freeze | grep -iE "^(jax|libtpu|numpy|tensorflow|torch)[a-z0-9_-]*==" \\
    > kept.txt
!pip install -q --no-deps "keras>=3.15" "keras-hub>=0.32" ../..
!python -c "import tensorflow_text" 2> /dev/null || \\
    pip install -q -c kept.txt "tensorflow-text!=2.21.0"
!pip install -q -c kept.txt {packages} \\
    {light}"""
OUTPUTS = {
    None: "",
    False: "<br>\n**Outputs:** from two CPU cores.",
    True: "<br>\n**Outputs:** from two CPU cores, with `KERAS_BOND_SMALL=1`.",
}
# A cell that is not executed with the others.
NOT_EXECUTED = "install"
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


def to_notebook(source, is_small=None):
    """Makes the notebook of a Python file.

    Args:
        source: str. Text of the file.
        is_small: bool. Whether its outputs are those of a run at small scale,
            or `None` if it has none.

    Returns:
        str, JSON in the notebook format 4.5, without outputs.

    Raises:
        ValueError: if the header is not the one of `HEADER`.
    """
    parts = _split(source)
    _, header = next(parts, ("", ""))
    header = _parse_header(header)
    cells = [_cell("markdown", _front_page(header, is_small))]
    for kind, text in parts:
        if kind == "docstring" and text.split("\n")[0] == "install":
            cells.append(_cell("code", _install(text)))
            cells[-1]["metadata"] = {"tags": [NOT_EXECUTED]}
        else:
            cells.append(_cell("code" if kind == "code" else "markdown", text))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number:02}"
    return to_text(
        {
            "cells": cells,
            "metadata": {**KERNEL, **MACHINES[header["Accelerator"]]},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
    )


def to_text(notebook):
    """The text of a notebook, a dict."""
    text = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True)
    return text + "\n"


def without_outputs(text):
    """The text of a notebook without its outputs."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(execution_count=None, outputs=[])
    return to_text(notebook)


def execute(text, file, folder, environment, after=""):
    """Executes a notebook in a kernel of its own.

    Args:
        text: str, the notebook.
        file: path of its source.
        folder: path of the working directory.
        environment: dict of str, the environment of the kernel.
        after: str. Code to run at the end, which is no part of the result.

    Returns:
        dict, the notebook with outputs that are the same on every machine.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    import nbclient
    import nbformat

    notebook = nbformat.reads(text, as_version=4)
    where = nbformat.v4.new_code_cell(f"__file__ = {str(file)!r}")
    last = nbformat.v4.new_code_cell(after)
    notebook.cells = [where, *notebook.cells, last]
    nbclient.NotebookClient(
        notebook,
        timeout=None,
        record_timing=False,
        kernel_name="python3",
        skip_cells_with_tag=NOT_EXECUTED,
        resources={"metadata": {"path": str(folder)}},
    ).execute(env=environment)
    # Only the outputs: the client adds what is of this machine.
    finished = json.loads(text)
    for cell, done in zip(finished["cells"], notebook.cells[1:-1]):
        if cell["cell_type"] == "code":
            done = json.loads(json.dumps(done))
            cell["execution_count"] = done["execution_count"]
            cell["outputs"] = done["outputs"]
            _clean(cell, str(folder))
    return finished


def _clean(cell, folder):
    """Leaves out what only says where and when a cell was executed."""
    if cell["execution_count"] is not None:
        cell["execution_count"] -= 1
    is_error = {"output_type": "stream", "name": "stderr"}.items()
    outputs = [
        output
        for output in cell["outputs"]
        # Errors are warnings here; objects such as a `History` have an address.
        if not is_error <= output.items() and " at 0x" not in _plain(output)
    ]
    for output in outputs:
        if output["output_type"] == "stream":
            output["text"] = _lines(_clean_text(output["text"], folder))
        output.pop("metadata", None)
        if "data" in output:
            output["metadata"] = {}
    cell["outputs"] = [o for o in outputs if o.get("text") != []]


def _clean_text(text, folder):
    text = "".join(text).replace(folder, ".").replace(f"{ROOT}/", "")
    # Colors; the times of a line of Keras; the folders of temporary files.
    for pattern, other in (
        (r"\x1b\[[0-9;]*m", ""),
        (r" - \d+m?s( - \d+[mu]?s/\w+)?(?= - )", ""),
        (r"/tmp/\w+", "/tmp/folder"),
    ):
        text = re.sub(pattern, other, text)
    return text


def _plain(output):
    return "".join(output.get("data", {}).get("text/plain", ""))


def _lines(text):
    return text.splitlines(keepends=True)


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


def _front_page(header, is_small):
    accelerator = header["Accelerator"]
    needs = "none, any CPU" if accelerator == "None" else accelerator
    return (
        f"# {header['Title']}\n\n"
        f"**Author:** {header['Author']}<br>\n"
        f"**Date created:** {header['Date created']}<br>\n"
        f"**Description:** {header['Description']}<br>\n"
        f"**Accelerator:** {needs}; minutes are in the table below."
        f"{OUTPUTS[is_small]}"
    )


def _install(text):
    """The commands of a cell that installs: its text names more packages."""
    packages = " ".join(["jax matplotlib", *text.splitlines()[1:]])
    return INSTALL.format(packages=packages, light=LIGHT)


def _cell(kind, text):
    cell = {
        "cell_type": kind,
        "metadata": {},
        "source": text.splitlines(keepends=True),
    }
    if kind == "code":
        cell.update(execution_count=None, outputs=[])
    return cell


def kept_outputs(text, file):
    """A notebook with the outputs of its file, if the code is the same."""
    if not file.exists():
        return text
    notebook, old = json.loads(text), json.loads(file.read_text("utf-8"))
    new, old = (
        [cell for cell in one["cells"] if cell["cell_type"] == "code"]
        for one in (notebook, old)
    )
    if [cell["source"] for cell in new] == [cell["source"] for cell in old]:
        for cell, before in zip(new, old):
            for name in ("execution_count", "outputs"):
                cell[name] = before[name]
    return to_text(notebook)


def executed(source, text):
    """Executes a notebook where `name.py` lies; returns its text."""
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment["KERAS_BOND_SMALL"] = str(int(EXECUTED[source.stem]))
    return to_text(execute(text, source, HERE, environment))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--execute",
        nargs="*",
        choices=EXECUTED,
        metavar="NAME",
        help="also run them all, or those of these names",
    )
    names = parser.parse_args().execute
    names = EXECUTED if names == [] else names or ()
    for file in tutorials():
        notebook = file.with_suffix(".ipynb")
        text = to_notebook(file.read_text("utf-8"), EXECUTED.get(file.stem))
        if file.stem in names:
            text = executed(file, text)
        else:
            text = kept_outputs(text, notebook)
        fresh = file.with_suffix(".ipynb.new")
        fresh.write_text(text, "utf-8")
        os.replace(fresh, notebook)
        print(f"Wrote {notebook.name}")


if __name__ == "__main__":
    main()
