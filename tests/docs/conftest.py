"""Tiny models and data under the names that the documentation uses."""

import json
import pathlib
import re

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import keras_bond
from tests import pictures
from tests.tiny import PROMPTS
from tests.tiny import chat_vocabulary
from tests.tiny import length_reward
from tests.tiny import make_policy

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
GOLDEN = (ROOT / "tests" / "golden" / "public_api.txt").read_text()
FENCE = re.DOTALL | re.MULTILINE
LENGTHS = {"max_prompt_length": 32, "max_completion_length": 5}
ONLY_JAX = pytest.mark.skipif(
    keras.config.backend() != "jax",
    reason="the site is the same on every backend; what it calls is tested",
)


def make_chat_policy(**arguments):
    return make_policy(num_layers=1, proto=chat_vocabulary(), **arguments)


@pytest.fixture(scope="session")
def bond():
    made = keras_bond.JBond(
        make_chat_policy(), length_reward, reference=True, **LENGTHS
    )
    made.compile(keras.optimizers.SGD(1e-5))
    return made


@pytest.fixture
def names(bond, tmp_path, monkeypatch):
    """What the code assumes: a policy, prompts, rewards, files."""
    monkeypatch.chdir(tmp_path)
    # Programs set it; other tests start processes.
    monkeypatch.setenv("KERAS_BACKEND", keras.config.backend())
    (tmp_path / "my_folder").mkdir()
    for model in (keras_hub.models.Gemma3CausalLM, keras_hub.models.CausalLM):
        monkeypatch.setattr(
            model,
            "from_preset",
            lambda name, dtype=None: (
                pictures.make_policy("gemma3")
                if name == "gemma3_instruct_4b"
                else make_chat_policy(dtype=dtype)
            ),
        )
    monkeypatch.setattr(
        keras_bond, "load_hugging_face", lambda folder: make_chat_policy()
    )
    questions = {"question": PROMPTS, "answer": ["so #### 1"] * 8}
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
    yield {
        "keras": keras,
        "keras_hub": keras_hub,
        "keras_bond": keras_bond,
        "np": np,
        "bond": bond,
        "policy": make_chat_policy(),
        "prompts": PROMPTS,
        "held_out": PROMPTS[:4],
        "held_out_pairs": pairs,
        "questions": PROMPTS,
        "answers": ["a"] * 8,
        "reward": length_reward,
        "judge": length_reward,
        "another_judge": length_reward,
        "another_reward": length_reward,
        "my_reward": length_reward,
        "reward_model": length_reward,
        "ask_the_judge": lambda prompt, completion: len(completion),
        "small_backbone": make_chat_policy(seed=1).backbone,
    }
    keras.distribution.set_distribution(None)
