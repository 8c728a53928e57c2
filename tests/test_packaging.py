"""What is installed, and what it can do without."""

import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import keras
import pytest

import keras_bond
from tests.tiny import vocabulary

pytestmark = pytest.mark.one_backend

ROOT = pathlib.Path(__file__).resolve().parents[1]
FRAMEWORKS = ("jax", "tensorflow", "torch")

# A policy is trained, saved and asked, with text in and text out, where the
# other frameworks cannot be imported. Gemma 3's preprocessor wants TensorFlow
# (KerasHub 0.32), that of Gemma does not.
ALONE = """
import pathlib
import sys

file, *missing = sys.argv[1:]
for name in missing:
    sys.modules[name] = None

import keras
import keras_hub

import keras_bond

vocabulary = pathlib.Path(file).read_bytes()
tokenizer = keras_hub.models.GemmaTokenizer(proto=vocabulary)
policy = keras_hub.models.GemmaCausalLM(
    keras_hub.models.GemmaBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=16,
        intermediate_dim=32,
        head_dim=8,
    ),
    keras_hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=16),
)


def reward(prompts, completions):
    return [float(len(completion)) for completion in completions]


bond = keras_bond.JBond(
    policy, reward, max_prompt_length=9, max_completion_length=4, seed=0
)
bond.compile(keras.optimizers.SGD(1e-5), jit_compile=False)
history = bond.fit(["the fox", "quick"], batch_size=2, verbose=0).history
assert history["reward"][0] > 0
bond.save_weights("alone.weights.h5")
assert isinstance(bond.generate(["brown"])[0], str)
"""


def test_one_framework_is_enough(tmp_path):
    backend = keras.config.backend()
    missing = [name for name in FRAMEWORKS if name != backend]
    if "tensorflow" in missing:
        missing += ["tensorflow_text", "tensorflow_datasets"]
    file = tmp_path / "vocabulary.spm"
    file.write_bytes(vocabulary())
    process = subprocess.run(
        [sys.executable, "-c", ALONE, file, *missing],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert (tmp_path / "alone.weights.h5").exists()


def build(source, folder):
    """Builds archive and wheel; returns their paths."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (archive,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return archive, wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("built"))


def contents(wheel):
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = set(contents(built[1]))
    version = keras_bond.__version__
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "keras_bond").rglob("*.py")
    }
    about = ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")
    # No `py.typed`: types stand in docstrings, and a type checker is not to
    # trust this package.
    assert names == sources | {
        f"keras_bond-{version}.dist-info/{name}" for name in about
    }


def test_the_source_archive_holds_what_the_wheel_is_built_from(built, tmp_path):
    archive, wheel = built
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert {path.name for path in source.iterdir()} == {
        ".gitignore",
        "CONTRIBUTING.md",
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "keras_bond",
        "pyproject.toml",
    }
    again = tmp_path / "again"
    again.mkdir()
    assert contents(build(source, again)[1]) == contents(wheel)


def test_the_wheel_imports_by_itself(built, tmp_path):
    code = "import keras_bond; print(keras_bond.__file__)"
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(built[1])},
        capture_output=True,
        text=True,
    )
    assert str(built[1]) in process.stdout, process.stderr[-2000:]


def test_no_framework_is_required(built):
    """Not by name, that is: TensorFlow comes with tensorflow-text."""
    (metadata,) = (
        text.decode()
        for name, text in contents(built[1]).items()
        if name.endswith("METADATA")
    )
    required = re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)
    always = [line for line in required if "extra ==" not in line]
    names = {re.match(r"[\w-]+", line)[0] for line in always}
    assert names == {"keras", "keras-hub", "numpy", "tensorflow-text"}


def test_optional_packages_have_extras_and_one_has_all():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    named = set(re.search(r"\[(.*)\]", everything)[1].split(","))
    frameworks = {"jax", "tensorflow", "torch"}
    tools = {"all", "benchmarks", "docs", "examples", "lint", "test"}
    assert named == set(extras) - frameworks - tools
    packages = {
        re.match(r"[\w-]+", line)[0] for name in named for line in extras[name]
    }
    tested = {re.match(r"[\w-]+", line)[0] for line in extras["test"]}
    assert packages - tested == {"tensorflow-text", "tokenizers"}
    # There are no wheels for Windows.
    for line in [*project["dependencies"], *sum(extras.values(), [])]:
        if line.startswith("tensorflow-text"):
            assert "platform_system != 'Windows'" in line


def test_the_version_is_written_down_once():
    files = [
        *ROOT.glob("*.toml"),
        *ROOT.glob("*.cff"),
        *(ROOT / "keras_bond").rglob("*.py"),
    ]
    version = re.compile(rf"\b{re.escape(keras_bond.__version__)}\b")
    holders = [path for path in files if version.search(path.read_text())]
    assert holders == [ROOT / "keras_bond" / "version.py"]
