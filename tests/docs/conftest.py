"""Tiny models and data under the names that the documentation uses."""

import keras
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.docs import blocks
from tests.docs import folders
from tests.tiny import PROMPTS

GOLDEN = (blocks.ROOT / "tests" / "golden" / "public_api.txt").read_text()
ONLY_JAX = pytest.mark.skipif(
    keras.config.backend() != "jax",
    reason="the site is the same on every backend; what it calls is tested",
)


@pytest.fixture(scope="session")
def bond():
    return blocks.make_bond()


@pytest.fixture
def names(bond, tmp_path, monkeypatch):
    """What the code assumes: a policy, prompts, rewards, files."""
    monkeypatch.chdir(tmp_path)
    # Programs set it; other tests start processes.
    monkeypatch.setenv("KERAS_BACKEND", keras.config.backend())
    blocks.write_files(tmp_path)
    folders.write(tmp_path)
    blocks.replace_presets(monkeypatch.setattr)
    questions = {"question": PROMPTS, "answer": ["so #### 1"] * 8}
    monkeypatch.setattr(
        tfds,
        "load",
        lambda name, split: tf.data.Dataset.from_tensor_slices(questions),
    )
    yield blocks.make_names(bond)
    keras.distribution.set_distribution(None)
