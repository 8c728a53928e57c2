"""What the text of the pages names, quotes and links to exists."""

import inspect
import operator
import re

import pytest

import keras_bond
from keras_bond.training import learning_rates
from tests.docs.blocks import DOCS
from tests.docs.blocks import FENCE
from tests.docs.blocks import LENGTHS
from tests.docs.blocks import PAGES
from tests.docs.blocks import README
from tests.docs.blocks import ROOT
from tests.docs.conftest import GOLDEN
from tests.docs.conftest import ONLY_JAX
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

pytestmark = ONLY_JAX

CHANGELOG = ROOT / "CHANGELOG.md"
TEXTS = [
    *PAGES,
    CHANGELOG,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "examples" / "notebooks" / "README.md",
    *sorted(DOCS.glob("api/*.md")),
]
# Public names that were removed; `tests/test_words.py` lists words.
GONE = re.compile(
    r"\bRecorded\b|\bReplayed\b|CompletionsLog|BestOfNReport"
    r"|RewardOveroptimi|keras_bond report|kl_estimator|compile\(sampler="
    r"|\b(?:forward|backward|quantiles|ties)=|best_of_n/|\bgold/"
)
MAX_README_LINES = 185
PUBLIC = {
    name: getattr(module, name)
    for module in (keras_bond, keras_bond.callbacks, keras_bond.rewards)
    for name in module.__all__
}


def test_every_logged_number_is_explained(bond):
    page = (DOCS / "logged_numbers.md").read_text()
    policy = make_policy(num_layers=1)
    made = [
        keras_bond.Bond(policy, length_reward, kl_weight=1.0, **LENGTHS),
        keras_bond.Bond(
            policy,
            length_reward,
            estimator="learned",
            reference=True,
            **LENGTHS,
        ),
        keras_bond.Reinforce(policy, length_reward, **LENGTHS),
        keras_bond.BoNBoN(policy, length_reward, **LENGTHS),
    ]
    logged = {name for model in made for name in model.trackers}
    judge = keras_bond.RewardModel(policy)
    logged |= {metric.name for metric in judge.metrics}
    watching = [
        keras_bond.callbacks.HeldOut(
            PROMPTS, gold_reward=length_reward, verbose=0
        )
    ]
    bond.reward = length_reward
    history = bond.fit(PROMPTS, callbacks=watching, verbose=0).history
    assert {"kl_ref", "held_out/kl", "held_out/gold_reward"} < set(history)
    for name in logged | set(history):
        assert f"| `{name}`" in page or f", `{name}`" in page, name


def test_messages_that_are_explained_exist():
    """Quoted symptoms are messages of the package, except for numbers."""
    page = (DOCS / "troubleshooting.md").read_text()
    quoted = re.findall(r'^\|[^|]*?"([^"|]{20,})"', page, re.MULTILINE)
    sources = " ".join(
        path.read_text() for path in (ROOT / "keras_bond").rglob("*.py")
    )
    said = re.sub(r'"\s*f?"|\s+', " ", sources)
    said = re.sub(r" +", " ", said)
    assert len(quoted) >= 8
    for text in quoted:
        assert text in said, text


def test_settings_that_are_explained_exist():
    page = (DOCS / "settings.md").read_text()
    arguments = {
        *inspect.signature(keras_bond.Bond).parameters,
        *inspect.signature(keras_bond.Bond.compile).parameters,
        *inspect.signature(keras_bond.callbacks.AnchorEMA).parameters,
        *inspect.signature(keras_bond.callbacks.AnchorRefresh).parameters,
        *keras_bond.callbacks.__all__,
        "batch_size",
    }
    table = page.split("## What each setting does")[1].split("\n## ")[0]
    first_cells = re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE)
    named = re.findall(r"`(\w+)`", " ".join(first_cells))
    assert len(named) >= 6
    assert set(named) <= arguments


def code_that_trains():
    """Blocks of pages and docstrings, and whole notebooks, by file."""
    sources = (ROOT / "keras_bond").rglob("*.py")
    for path in [*PAGES, *sources]:
        blocks = re.findall(r"```python\n(.*?)```", path.read_text(), FENCE)
        yield from ((path.name, block) for block in blocks)
    for path in (ROOT / "examples" / "notebooks").glob("*.py"):
        lines = path.read_text().splitlines()
        rates = [line for line in lines if re.search("RATE|enable_lora", line)]
        yield path.name, "\n".join(rates)


def test_lora_is_trained_at_rates_of_lora():
    blocks = [b for b in code_that_trains() if "enable_lora(" in b[1]]
    assert len(blocks) >= 15
    for name, block in blocks:
        for rate in re.findall(r"\b\d[\d.]*e-\d+\b", block):
            assert float(rate) >= 1e-4, f"{name}: {rate}"


def test_the_page_has_the_rates_of_the_code():
    section = (DOCS / "settings.md").read_text().split("## Learning rates")[1]
    section = section.split("\n## ")[0]
    assert "1e-3" in section and learning_rates.USUAL["LoRA adapters"] == 1e-3
    for rates in (learning_rates.HIGH, learning_rates.LOW):
        for rate in rates.values():
            assert f"{rate:.0e}".replace("e-0", "e-") in section


def code_in_text(page):
    """The text between backticks, outside of blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=FENCE)
    return re.findall(r"`([^`\n]+)`", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_and_arguments_in_the_text_exist(page):
    modules = "|".join(n for n in dir(keras_bond) if f"{n}." in GOLDEN)
    dotted = rf"(?<![\w./])(?:keras_bond\.([\w.]*\w)|((?:{modules})\.[\w.]*\w))"
    called = r"(?<![\w.])([A-Z]\w+)\(([^()]*)\)"
    for code in code_in_text(page):
        for names in re.findall(dotted, code):
            operator.attrgetter("".join(names))(keras_bond)
        for name, arguments in re.findall(called, code):
            if name in PUBLIC:
                known = inspect.signature(PUBLIC[name]).parameters
                given = re.findall(r"(\w+)=", arguments)
                assert set(given) <= set(known), code


def test_files_that_are_named_exist():
    folders = "docs|examples|integration|keras_bond|tests"
    path = re.compile(rf"(?<![\w./-])(?:{folders})/[\w./]*\w")
    named = {(p, n) for p in TEXTS for n in path.findall(p.read_text("utf-8"))}
    assert len(named) > 40
    for page, name in named:
        found = [ROOT / name, ROOT / f"{name}.py", page.parent / name]
        made = ("examples/runs", "integration/runs")
        assert any(f.exists() for f in found) or name.startswith(made), name


def test_links_work_in_the_repository():
    """`mkdocs build --strict` checks the links within the site."""
    links = [
        (page, link.partition("#")[0])
        for page in TEXTS
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text())
    ]
    assert len(links) > 60
    for page, link in links:
        assert not link or (page.parent / link).exists(), f"{page}: {link}"


@pytest.mark.parametrize(
    "page",
    [page for page in TEXTS if page != CHANGELOG],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_pages_name_nothing_that_is_gone(page):
    text = page.read_text("utf-8").replace("policy.compile(sampler=", "")
    assert not GONE.findall(text)


def test_the_readme_is_short():
    assert len(README.read_text("utf-8").splitlines()) < MAX_README_LINES
