"""The code of the documentation runs: on the pages, and in docstrings."""

import ast
import builtins
import inspect
import re
import symtable

import keras
import numpy as np
import pytest

import keras_bond
from tests.docs.conftest import FENCE
from tests.docs.conftest import ONLY_JAX
from tests.docs.conftest import PAGES
from tests.tiny import length_reward

pytestmark = ONLY_JAX

PYTHON = re.compile(r"^```python\n(.*?)^```", FENCE)
# What a block has in it that is not run here, and why.
NOT_RUN = {
    "export_saved_model": "tests/export does it, in fresh processes",
    "save_safetensors": "tests/export does it",
    "import grpc": "tests/export/test_readme.py asks a server",
    "keras_bond.doctor(": "tests/diagnosis does it",
    "distribution.initialize": "integration/two_processes.py does it",
    "verify_saved_model": "tests/export does it",
}
# A tiny policy has short prompts, and adapters of rank 1 are a small share.
SMALLER = {
    "completion_length=64": "completion_length=5",
    "completion_length=256": "completion_length=5",
    "[:64]": "[:8]",
    "=64": "=24",
    "=256": "=24",
    "=512": "=24",
    "enable_lora(8)": "enable_lora(1)",
    "epochs=20": "epochs=1",
    "epochs=3": "epochs=1",
    "epochs=2": "epochs=1",
    "num_samples=16": "num_samples=2",
    ", ...]": "]",
    ", ...)": ", max_prompt_length=24, max_completion_length=5)",
}
# What pages and examples may define anew for themselves alone.
GIVEN = ("bond", "policy", "reward", "prompts")


def run(code, names):
    """Runs a block on tiny models; returns what its last line is worth."""
    for written, smaller in SMALLER.items():
        code = code.replace(written, smaller)
    names["bond"].reward = length_reward
    *body, last = ast.parse(code).body
    value = None
    if isinstance(last, ast.Expr):
        value = ast.Expression(last.value)
    else:
        body.append(last)
    exec(compile(ast.Module(body, []), "a block", "exec"), names)
    if value is not None:
        value = eval(compile(value, "a block", "eval"), names)
    keras.distribution.set_distribution(None)
    return value


def is_run(code):
    return not any(sign in code for sign in NOT_RUN)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_of_a_page_runs(page, names):
    """Blocks of a page share what they define, but each has a trainer."""
    given = {name: names[name] for name in GIVEN}
    for code in filter(is_run, PYTHON.findall(page.read_text("utf-8"))):
        names.update(given)
        run(code, names)


def test_the_first_program_is_whole():
    """It takes nothing for granted but modules, a preset and a file."""
    page = next(page for page in PAGES if page.name == "index.md")
    code = PYTHON.findall(page.read_text("utf-8"))[0]
    table = symtable.symtable(code, "index.md", "exec")
    taken = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if not (symbol.is_assigned() or symbol.is_imported())
    }
    missing = taken - set(dir(builtins))
    assert not missing


def examples():
    """The examples of all public classes and functions, by their names."""
    pending, found = [("keras_bond", keras_bond)], {}
    while pending:
        prefix, thing = pending.pop()
        for name in thing.__all__:
            value, path = getattr(thing, name), f"{prefix}.{name}"
            if inspect.ismodule(value):
                pending.append((path, value))
            elif callable(value):
                text = inspect.cleandoc(value.__doc__ or "") + "\n"
                for code in PYTHON.findall(text):
                    found[path] = code
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("name", [n for n in EXAMPLES if is_run(EXAMPLES[n])])
def test_an_example_runs(name, names):
    """And gives the list of numbers, or the string, that it says it gives."""
    code = EXAMPLES[name]
    value = run(code, names)
    said = re.search(r"# ([\['].*)\s*$", code)
    if said and isinstance(value, str):
        assert value == ast.literal_eval(said[1])
    elif said:
        expected = ast.literal_eval(said[1].replace("...", ""))
        np.testing.assert_allclose(value, expected, atol=1e-3)


def test_little_is_left_out():
    blocks = [
        code
        for page in PAGES
        for code in PYTHON.findall(page.read_text("utf-8"))
    ]
    assert len(blocks) >= 20 and len(EXAMPLES) >= 30
    assert sum(not is_run(code) for code in blocks) <= 8
    assert sum(not is_run(code) for code in EXAMPLES.values()) <= 4
    for sign in NOT_RUN:
        assert any(sign in c for c in [*blocks, *EXAMPLES.values()]), sign
