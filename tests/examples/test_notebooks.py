"""Every notebook runs in a Jupyter kernel, small, and finds what it says.

A notebook ends with a dict `results`; `EXPECTED` says between which bounds each
of its numbers lies. One entry a notebook: one that has none fails.
"""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re

import keras
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "notebooks"
TUTORIALS = sorted(p for p in FOLDER.glob("*.py") if p.name != "generate.py")

# Name of the notebook: name of the result: (lowest, highest). A tuple of two
# names means the difference of the first and the second.
#
# On one machine a run is a function of its seed and a false alarm impossible.
# One that rounds otherwise may draw otherwise, as another seed does. For the
# first three: of 4, 3 and 3 seeds the gains were 0.07 to 0.12, 0.13 to 0.19 and
# 0.10 to 0.22, and as normal numbers of that spread they are below their bound
# with a probability of less than 1 in 100. A policy that did not move draws the
# same again and gains exactly 0; one that is led astray gains less.
EXPECTED = {
    "quickstart": {
        "before": (0.5, 0.7),
        ("after", "before"): (0.025, 0.25),
        ("best_of_2", "before"): (0.05, 0.2),
        "win_rate": (0.52, 0.75),
        "effective_n": (1.05, 3.0),
        "kl": (0.1, 0.8),
        "loaded_says_the_same": (1, 1),
    },
    "gemma_on_tpu": {
        "before": (0.2, 0.5),
        ("after", "before"): (0.05, 0.4),
        "went_on_at_epoch": (1, 1),
        "saved": (1, 1),
    },
    "gemma_270m": {
        "before": (1.2, 1.5),
        ("after", "before"): (0.1, 0.5),
        "effective_n": (1.3, 3.5),
        "kl": (0.15, 1.2),
        "saved": (1, 1),
    },
    "export_and_serve": {
        "before": (0.15, 0.45),
        ("after", "before"): (0.01, 0.4),
        "greedy_agrees": (1, 1),
        # One draw of some 30 tokens: TensorFlow's rounding moves one of them
        # with a probability of about 1e-5.
        "drawn_agrees": (1, 1),
        "greedy_log_prob": (-20, -3),
        ("greedy_log_prob", "drawn_log_prob"): (2, 30),
    },
}

# The others were run with three seeds each; their bounds leave more room than
# the seeds took, and exclude the policy that did not move.
EXPECTED |= {
    "summarization_reward_model": {
        "accuracy": (0.58, 0.85),
        ("gold_best_of_4", "gold_before"): (0.05, 0.25),
        ("gold_after", "gold_before"): (0.01, 0.25),
        "learned_gain": (0.05, 0.8),
        "kl_ref": (0.05, 0.8),
    },
    "gsm8k_verifiable_rewards": {
        "right_before": (0.25, 0.42),
        ("best_of_2_before", "right_before"): (0.12, 0.3),
        ("right_after", "right_before"): (0.1, 0.45),
        "well_formed_after": (0.9, 1),
        "teaches": (0.8, 1),
        "dead_last": (0, 0.2),
        "kl_ref": (0.1, 0.8),
    },
    "steering_style": {
        ("sentiment_alone", "sentiment_before"): (0.1, 0.6),
        ("facts_alone", "facts_before"): (-0.35, 0.03),
        ("sentiment_ranks", "sentiment_before"): (0.05, 0.5),
        ("facts_ranks", "facts_before"): (0.06, 0.4),
        ("facts_sum", "facts_before"): (0.06, 0.4),
        "kl_saved": (0.1, 2),
    },
    "migrating_from_trl": {
        ("right_after", "right_before"): (0.06, 0.45),
        "kl_ref": (0.05, 0.8),
        "unscored_in_sum": (0, 0),
        "unscored_alone": (0.25, 0.25),
        "shared_names": (9, 9),
    },
}

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax",
    reason="what the notebooks call is tested elsewhere on every backend",
)

# Written by a last cell: what a notebook found.
WRITE = """
import json, pathlib
pathlib.Path("results.json").write_text(json.dumps(results))
"""


@pytest.mark.parametrize("file", TUTORIALS, ids=lambda file: file.stem)
def test_it_finds_what_it_says(file, tmp_path):
    expected = EXPECTED[file.stem]
    results, outputs = run(file, tmp_path)
    for name, (low, high) in expected.items():
        value = value_of(name, results)
        assert low <= value <= high, f"{name}: {value} of {results}"
    if file.stem == "quickstart":
        check_outputs(outputs)


def check_outputs(outputs):
    """The picture is one, and completions are blocks of HTML."""
    shown = [output.get("data", {}) for output in outputs]
    assert sum("image/png" in data for data in shown) == 1
    blocks = ["".join(data.get("text/html", "")) for data in shown]
    assert any("Held-out prompts at step" in html for html in blocks)
    assert not any(str(ROOT) in json.dumps(output) for output in outputs)


def value_of(name, results):
    """A result, or the difference of two."""
    if isinstance(name, str):
        return results[name]
    more, less = name
    return results[more] - results[less]


def run(file, folder):
    """Runs a notebook in a kernel; returns its `results` and its outputs."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "KERAS_BOND_SMALL": "1",
        # libtpu, where it is installed, serves one process at a time.
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    # A notebook that wants many devices makes them itself. They run for longer
    # than they are compiled, so some optimization pays.
    environment["XLA_FLAGS"] = (
        "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
    )
    text = generator().to_notebook(file.read_text("utf-8"))
    notebook = generator().execute(text, file, folder, environment, WRITE)
    outputs = [o for c in notebook["cells"] for o in c.get("outputs", ())]
    return json.loads((folder / "results.json").read_text()), outputs


def generator():
    """The module `generate.py`, which is no part of a package."""
    file = FOLDER / "generate.py"
    spec = importlib.util.spec_from_file_location("generate", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", TUTORIALS, ids=lambda file: file.stem)
def test_the_notebook_is_that_of_its_source(file):
    is_small = generator().EXECUTED.get(file.stem)
    fresh = generator().to_notebook(file.read_text("utf-8"), is_small)
    committed = file.with_suffix(".ipynb").read_text("utf-8")
    assert fresh == generator().without_outputs(committed), (
        "Run `python examples/notebooks/generate.py`"
    )


@pytest.mark.parametrize("file", TUTORIALS, ids=lambda file: file.stem)
def test_what_is_executed_is_shown(file):
    text = file.with_suffix(".ipynb").read_text("utf-8")
    cells = json.loads(text)["cells"]
    outputs = [o for cell in cells for o in cell.get("outputs", ())]
    assert bool(outputs) == (file.stem in generator().EXECUTED), (
        f"Run `python examples/notebooks/generate.py --execute {file.stem}`"
    )
    assert len(text) < 300_000 and "<Figure size" not in text
    shown = json.dumps(outputs)
    assert not re.search(r"/(home|root|usr|work)/|s/step|Warning", shown)
    if file.stem == "quickstart":
        check_outputs(outputs)


def test_cells_that_install_name_what_keras_needs():
    """They install it without what it depends on."""
    needed = set()
    for package in ("keras", "keras-hub"):
        lines = importlib.metadata.requires(package)
        lines = [line for line in lines if "extra ==" not in line]
        needed |= {re.match("[A-Za-z0-9-]+", line)[0] for line in lines}
    needed -= {"keras", "numpy", "tensorflow-text"}
    light = generator().LIGHT.split()
    assert {package.partition("==")[0] for package in light} == needed


SOURCE = '''"""
Title: One
Author: keras_bond
Date created: 2026/11/25
Description: A page
 of two lines.
Accelerator: TPU
"""

r"""
# Text
with \\alpha
"""

"""install
one
"two>=2"
"""

# A comment.
x = """no cell"""


def f():
    """No cell either."""


f()
'''


def test_docstrings_become_text_and_installation_and_the_rest_code():
    notebook = json.loads(generator().to_notebook(SOURCE))
    cells = [(c["cell_type"], "".join(c["source"])) for c in notebook["cells"]]
    (kind, front), *rest = cells
    assert kind == "markdown" and front.startswith("# One\n")
    assert "A page of two lines." in front and "TPU" in front
    install = cells[2][1]
    assert '-c kept.txt jax matplotlib one "two>=2" \\\n' in install
    assert rest == [
        ("markdown", "# Text\nwith \\alpha"),
        ("code", install),
        ("code", SOURCE[SOURCE.index("# A comment") :].strip()),
    ]
    assert notebook["metadata"]["accelerator"] == "TPU"
    assert len({cell["id"] for cell in notebook["cells"]}) == 4


def test_a_header_that_lacks_something_is_refused():
    for bad in (
        SOURCE.replace("Author: keras_bond\n", ""),
        SOURCE.replace("Accelerator: TPU", "Accelerator: abacus"),
    ):
        with pytest.raises(ValueError, match="must begin with a docstring of"):
            generator().to_notebook(bad)
