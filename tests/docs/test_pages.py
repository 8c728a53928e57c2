"""The site: it builds, says what is there, and its code runs."""

import inspect
import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import keras_bond
from keras_bond.training.staged_model import StagedModel
from tests.conftest import PROMPTS
from tests.conftest import length_reward
from tests.conftest import make_policy

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
GOLDEN = (ROOT / "tests" / "golden" / "public_api.txt").read_text()
FENCE = re.DOTALL | re.MULTILINE
PYTHON = re.compile(r"^```python\n(.*?)^```", FENCE)
OBJECT = re.compile(
    r'<div class="doc doc-object doc-(class|function)">\s*<h\d[^>]*>\s*'
    r'(?:<span[^>]*>)?([\w.]+)(.*?)(?=<div class="doc doc-object|\Z)',
    re.DOTALL,
)
# What a block has in it that is not run here, and why.
NOT_RUN = {
    "export_saved_model": "tests/export does it, in fresh processes",
    "save_safetensors": "tests/export does it",
    "import grpc": "tests/export/test_readme.py asks a server",
    "keras_bond.doctor()": "tests/diagnosis does it",
    "distribution.initialize": "integration/two_processes.py does it",
}
# A tiny policy has short prompts, and adapters of rank 1 are a small share.
SMALLER = {
    "=256": "=24",
    "=512": "=24",
    "enable_lora(8)": "enable_lora(1)",
    "epochs=20": "epochs=1",
    "epochs=3": "epochs=1",
    ", ...)": ", max_prompt_length=24, max_completion_length=5)",
}
LENGTHS = {"max_prompt_length": 24, "max_completion_length": 5}

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax",
    reason="there is one site; what it calls is tested on every backend",
)


@pytest.fixture(scope="module")
def bond():
    made = keras_bond.JBond(
        make_policy(num_layers=1), length_reward, reference=True, **LENGTHS
    )
    made.compile(keras.optimizers.SGD(1e-5))
    return made


@pytest.fixture
def names(bond, tmp_path, monkeypatch):
    """What a reader of a page has: a policy, prompts, rewards, files."""
    monkeypatch.chdir(tmp_path)
    for model in (keras_hub.models.Gemma3CausalLM, keras_hub.models.CausalLM):
        monkeypatch.setattr(
            model,
            "from_preset",
            lambda name, dtype=None: make_policy(num_layers=1, dtype=dtype),
        )
    questions = {"question": ["fox", "dog"], "answer": ["so #### 1", "2"]}
    monkeypatch.setattr(
        tfds,
        "load",
        lambda name, split: tf.data.Dataset.from_tensor_slices(questions),
    )
    pairs = [
        {"prompt": prompt, "chosen": "the quick fox", "rejected": "dog"}
        for prompt in PROMPTS
    ]
    lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
    (tmp_path / "preferences.jsonl").write_text(lines)
    (tmp_path / "prompts.txt").write_text("\n".join(9 * PROMPTS))
    rng = np.random.default_rng(0)
    yield {
        "keras": keras,
        "keras_hub": keras_hub,
        "keras_bond": keras_bond,
        "np": np,
        "bond": bond,
        "policy": make_policy(num_layers=1),
        "prompts": PROMPTS,
        "held_out": PROMPTS[:4],
        "held_out_pairs": pairs,
        "questions": PROMPTS[:4],
        "answers": ["a"] * 4,
        "reward": length_reward,
        "judge": length_reward,
        "another_judge": length_reward,
        "start": rng.normal(size=(9, 64)),
        "after": rng.normal(size=(9, 16)),
    }
    keras.distribution.set_distribution(None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_of_a_page_runs(page, names, bond):
    """Blocks of a page share what they define, but each has a trainer."""
    standing, given = dict(names), {"bond", "policy", "reward", "prompts"}
    for code in PYTHON.findall(page.read_text("utf-8")):
        if any(sign in code for sign in NOT_RUN):
            continue
        for written, smaller in SMALLER.items():
            code = code.replace(written, smaller)
        names.update({name: standing[name] for name in given})
        bond.reward = length_reward
        exec(compile(code, f"{page.name}", "exec"), names)
        keras.distribution.set_distribution(None)


def test_little_is_left_out():
    blocks = [
        code
        for page in PAGES
        for code in PYTHON.findall(page.read_text("utf-8"))
    ]
    left_out = [
        code for code in blocks if any(sign in code for sign in NOT_RUN)
    ]
    assert len(blocks) >= 20
    assert len(left_out) <= 8
    for sign in NOT_RUN:
        assert any(sign in code for code in blocks), f"{sign} is gone"


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
    """A module of the same name takes the place of a function: not that."""
    names = {line.partition("(")[0] for line in GOLDEN.splitlines()}
    texts = {}
    for page in (site / "api").glob("*.html"):
        texts |= described(page)
    assert names <= set(texts), names - set(texts)
    for name in names:
        assert "<p>" in texts[name], f"{name} has no text"


def test_methods_that_one_calls_are_described(site):
    texts = described(site / "api" / "trainers.html")
    for method in ("fit", "evaluate", "generate", "draw_scored"):
        assert "<p>" in texts[method]
    told = texts["keras_bond.Bond.compile"]
    _, *arguments = inspect.signature(StagedModel.compile).parameters
    for argument in arguments:
        assert f"<code>{argument}</code>" in told, argument


def test_the_site_loads_nothing_from_elsewhere(site):
    loads = r'(?:<script|<img|rel="stylesheet")[^>]*(?:src|href)="https?://'
    for page in site.rglob("*.html"):
        assert not re.search(loads, page.read_text()), page
