"""The table of families in the docs is that of the tests."""

import pathlib
import re

from keras_bond.rollouts import supported
from tests.networks import FAMILIES
from tests.networks import ON_ALL_BACKENDS

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "families.md"


def rows(header):
    """The cells of a table, from the first cell of its header."""
    table = (
        PAGE.read_text().partition(f"\n| {header} |")[2].partition("\n\n")[0]
    )
    lines = table.splitlines()[2:]
    return [[cell.strip() for cell in x.strip("|").split("|")] for x in lines]


def test_the_table_names_what_is_tested():
    expected = []
    for family, (name, _) in FAMILIES.items():
        everywhere = family in ON_ALL_BACKENDS
        backends = "JAX, TensorFlow, PyTorch" if everywhere else "PyTorch"
        expected.append([family, f"`{name}CausalLM`", backends])
    assert rows("family") == expected


def test_the_table_names_what_is_refused():
    named = re.findall(r"`(\w+LM)`", str(rows("class in `keras_hub.models`")))
    assert sorted(named) == sorted([*supported.REFUSED, *supported.BROKEN])
