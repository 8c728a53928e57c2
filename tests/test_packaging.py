"""What is installed, and what it can do without."""

import os
import pathlib
import subprocess
import sys
import tarfile
import zipfile

import keras
import pytest

import keras_bond

ROOT = pathlib.Path(__file__).resolve().parents[1]
FRAMEWORKS = ("jax", "tensorflow", "torch")

# A policy is trained, saved and asked, with text in and text out, where the
# other frameworks cannot be imported. Gemma 3's preprocessor wants TensorFlow
# (KerasHub 0.32), that of Gemma does not.
ALONE = """
import io
import sys

for name in sys.argv[1:]:
    sys.modules[name] = None

import keras
import keras_hub
import sentencepiece

import keras_bond

vocabulary = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the quick brown fox"] * 20),
    model_writer=vocabulary,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    pad_piece="<pad>",
    eos_piece="<eos>",
    bos_piece="<bos>",
    unk_piece="<unk>",
    user_defined_symbols=["<end_of_turn>"],
    vocab_size=40,
    model_type="BPE",
    hard_vocab_limit=False,
    minloglevel=2,
)
tokenizer = keras_hub.models.GemmaTokenizer(proto=vocabulary.getvalue())
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
    process = subprocess.run(
        [sys.executable, "-c", ALONE, *missing],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert (tmp_path / "alone.weights.h5").exists()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    version = keras_bond.__version__
    assert tops == {"keras_bond", f"keras_bond-{version}.dist-info"}
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "keras_bond").rglob("*.py")
    }
    assert sources <= set(names)
    # Types stand in docstrings: a type checker is not to trust this package.
    assert "keras_bond/py.typed" not in names
    assert f"keras_bond-{version}.dist-info/licenses/LICENSE" in names


def test_the_source_archive_builds_the_same(built):
    (archive,) = built.glob("*.tar.gz")
    names = tarfile.open(archive).getnames()
    tops = {name.split("/")[1] for name in names if "/" in name}
    assert {"keras_bond", "LICENSE", "README.md", "pyproject.toml"} <= tops
    assert not tops & {"tests", "integration", "examples", "docs"}
