"""The code of the documentation runs: on the pages, and in docstrings."""

import ast
import builtins
import re
import symtable

import numpy as np
import pytest

from tests.docs import extras
from tests.docs.blocks import GIVEN
from tests.docs.blocks import NOT_RUN
from tests.docs.blocks import PAGES
from tests.docs.blocks import README
from tests.docs.blocks import blocks
from tests.docs.blocks import examples
from tests.docs.blocks import run
from tests.docs.conftest import ONLY_JAX
from tests.numeric import values_of


def is_run(code):
    return not any(sign in code for sign in NOT_RUN)


def run_page(found, names):
    """Blocks of a page share what they define, but each has a trainer."""
    given = {name: names[name] for name in GIVEN}
    for block in found:
        if is_run(block.code):
            names.update(given)
            with extras.only_named(block.text):
                run(block.code, names)


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
    first = blocks(README)[0]
    with extras.only_named(first.text):
        run(first.code, names)
    adapters = names["bond"].policy.trainable_variables
    second_factors = [v for v in adapters if "lora_kernel_b" in v.path]
    assert second_factors
    for values in values_of(second_factors):
        assert np.abs(values).max() > 5e-5


@pytest.mark.parametrize("name", ["README.md", "index.md"])
def test_the_first_program_is_whole(name):
    """It assumes only modules, a preset and a file."""
    page = next(page for page in PAGES if page.name == name)
    table = symtable.symtable(blocks(page)[0].code, name, "exec")
    taken = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if not (symbol.is_assigned() or symbol.is_imported())
    }
    assert not taken - set(dir(builtins))


EXAMPLES = examples()
RUN = [name for name, block in EXAMPLES.items() if is_run(block.code)]


@ONLY_JAX
@pytest.mark.parametrize("name", RUN)
def test_an_example_runs(name, names):
    """It returns the list of numbers, or the string, that its comment says."""
    code = EXAMPLES[name].code
    with extras.only_named(EXAMPLES[name].text):
        value = run(code, names)
    said = re.search(r"# ([\['].*)\s*$", code)
    if said and isinstance(value, str):
        assert value == ast.literal_eval(said[1])
    elif said:
        expected = ast.literal_eval(said[1].replace("...", ""))
        np.testing.assert_allclose(value, expected, atol=1e-3)


def test_little_is_left_out():
    codes = [block.code for page in PAGES for block in blocks(page)]
    shown = [block.code for block in EXAMPLES.values()]
    assert len(codes) >= 20 and len(shown) >= 30
    assert sum(not is_run(code) for code in codes) <= 13
    assert sum(not is_run(code) for code in shown) <= 5
    for sign in NOT_RUN:
        assert any(sign in code for code in [*codes, *shown]), sign
