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
from tests.docs.conftest import README
from tests.numeric import values_of
from tests.tiny import length_reward

PYTHON = re.compile(r"^```python\n(.*?)^```", FENCE)
# Blocks that contain one of these are not run here, and why.
NOT_RUN = {
    "export_saved_model": "tests/export runs it in fresh processes",
    "save_adapters": "tests/hugging_face runs it",
    "save_safetensors": "tests/export runs it",
    "import LLM": "vLLM needs a GPU",
    "import grpc": "tests/export/test_serving_page.py asks a server",
    "keras_bond.doctor(": "tests/diagnosis runs it",
    "distribution.initialize": "integration/two_processes.py runs it",
    "verify_saved_model": "tests/export runs it",
    "import wandb": "it is not installed here",
    "import mlflow": "it is not installed here",
    "import keras_tuner": "it is not installed here",
    "import parse": "math-verify is not installed here",
    "upload_preset": "it needs an account",
}
# The tiny policies read letters, so that a chat prompt is long. LoRA of a lower
# rank has few enough parameters for a reference to be kept.
SMALLER = {
    "prompt_length=32": "prompt_length=96",
    "prompts * 20": "prompts",
    "completion_length=64": "completion_length=5",
    "completion_length=256": "completion_length=5",
    "[:64]": "[:8]",
    "=64": "=32",
    "=256": "=32",
    "=512": "=32",
    "enable_lora(8)": "enable_lora(1)",
    "epochs=20": "epochs=1",
    "epochs=3": "epochs=1",
    "epochs=2": "epochs=1",
    "num_samples=16": "num_samples=2",
    ", ...]": "]",
    ", ...)": ", max_prompt_length=32, max_completion_length=5)",
}
# Names that a page or an example may define for itself only.
GIVEN = ("bond", "policy", "reward", "prompts")


def run(code, names):
    """Runs a block on tiny models; returns the value of its last line."""
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


def blocks(page):
    return PYTHON.findall(page.read_text("utf-8"))


def run_page(codes, names):
    """Blocks of a page share what they define, but each has a trainer."""
    given = {name: names[name] for name in GIVEN}
    for code in filter(is_run, codes):
        names.update(given)
        run(code, names)


def test_code_of_the_readme_runs(names):
    """The rest of it: the first program is run below."""
    run_page(blocks(README)[1:], names)


@ONLY_JAX
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_code_of_a_page_runs(page, names):
    run_page(blocks(page), names)


def test_the_first_program_trains_adapters(names):
    """At the paper's rate, adapters would move by 3e-6 in an update."""
    run(blocks(README)[0], names)
    adapters = names["bond"].policy.trainable_variables
    second_factors = [v for v in adapters if "lora_kernel_b" in v.path]
    assert second_factors
    for values in values_of(second_factors):
        assert np.abs(values).max() > 5e-5


@pytest.mark.parametrize("name", ["README.md", "index.md"])
def test_the_first_program_is_whole(name):
    """It assumes only modules, a preset and a file."""
    page = next(page for page in PAGES if page.name == name)
    table = symtable.symtable(blocks(page)[0], name, "exec")
    taken = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if not (symbol.is_assigned() or symbol.is_imported())
    }
    assert not taken - set(dir(builtins))


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


@ONLY_JAX
@pytest.mark.parametrize("name", [n for n in EXAMPLES if is_run(EXAMPLES[n])])
def test_an_example_runs(name, names):
    """It returns the list of numbers, or the string, that its comment says."""
    code = EXAMPLES[name]
    value = run(code, names)
    said = re.search(r"# ([\['].*)\s*$", code)
    if said and isinstance(value, str):
        assert value == ast.literal_eval(said[1])
    elif said:
        expected = ast.literal_eval(said[1].replace("...", ""))
        np.testing.assert_allclose(value, expected, atol=1e-3)


def test_little_is_left_out():
    codes = [code for page in PAGES for code in blocks(page)]
    assert len(codes) >= 20 and len(EXAMPLES) >= 30
    assert sum(not is_run(code) for code in codes) <= 12
    assert sum(not is_run(code) for code in EXAMPLES.values()) <= 5
    for sign in NOT_RUN:
        assert any(sign in c for c in [*codes, *EXAMPLES.values()]), sign
