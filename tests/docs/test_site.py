"""The site builds, describes the public names, and needs no other site."""

import inspect
import os
import re
import subprocess
import sys

import pytest

from keras_bond.training.policy_trainer import PolicyTrainer
from tests.docs.conftest import GOLDEN
from tests.docs.conftest import ONLY_JAX
from tests.docs.extras import ROOT

pytestmark = ONLY_JAX

OBJECT = re.compile(
    r'<div class="doc doc-object doc-(class|function)">\s*<h\d[^>]*>\s*'
    r'(?:<span[^>]*>)?([\w.]+)(.*?)(?=<div class="doc doc-object|\Z)',
    re.DOTALL,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "WARNING" not in process.stderr
    return folder


def described(page):
    """The classes and functions on a page of the API, and their texts."""
    found = OBJECT.findall(page.read_text())
    return {name: text for _, name, text in found}


def test_every_public_name_is_described(site):
    """A function must not be hidden by the module of the same name."""
    names = {line.partition("(")[0] for line in GOLDEN.splitlines()}
    texts = {}
    for page in (site / "api").glob("*.html"):
        texts |= described(page)
    assert names <= set(texts), names - set(texts)
    for name in names:
        assert "<p>" in texts[name], f"{name} has no text"


def test_methods_that_users_call_are_described(site):
    texts = described(site / "api" / "trainers.html")
    for method in ("fit", "evaluate", "generate", "draw_scored"):
        assert "<p>" in texts[method]
    told = texts["keras_bond.Bond.compile"]
    _, *arguments = inspect.signature(PolicyTrainer.compile).parameters
    for argument in arguments:
        assert f"<code>{argument}</code>" in told, argument


def test_the_site_loads_nothing_from_elsewhere(site):
    loads = r'(?:<script|<img|rel="stylesheet")[^>]*(?:src|href)="https?://'
    for page in site.rglob("*.html"):
        assert not re.search(loads, page.read_text()), page
