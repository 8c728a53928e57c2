"""Blocks of Python in the documentation, and tiny models to run them on.

Nothing here imports an optional package: `tests/docs/only_extras.py` runs
blocks where most of them cannot be imported.
"""

import ast
import inspect
import json
import os
import re
from typing import NamedTuple

import keras
import keras_hub
import numpy as np

import keras_bond
from tests import pictures
from tests.docs.extras import ROOT
from tests.tiny import PROMPTS
from tests.tiny import chat_vocabulary
from tests.tiny import length_reward
from tests.tiny import make_policy

DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
FENCE = re.DOTALL | re.MULTILINE
PYTHON = re.compile(r"^```python\n(.*?)^```", FENCE)
CODE = re.compile(r"^```.*?^```", FENCE)
HEADING = re.compile(r"^#+ ", re.MULTILINE)
LENGTHS = {"max_prompt_length": 32, "max_completion_length": 5}
# Blocks that contain one of these are not run here, and why.
NOT_RUN = {
    "export_saved_model": "tests/export runs it in fresh processes",
    "save_adapters": "tests/hugging_face runs it",
    "transformers.": "Transformers is not installed here",
    "import LLM": "vLLM needs a GPU",
    "import grpc": "tests/export/test_serving_page.py asks a server",
    "keras_bond.doctor(": "tests/diagnosis runs it",
    "distribution.initialize": "integration/two_processes.py runs it",
    "verify_saved_model": "tests/export runs it",
    "import wandb": "it is not installed here",
    "import mlflow": "it is not installed here",
    "import keras_tuner": "it is not installed here",
    "import parse": "math-verify is not installed here",
    "upload_preset": "it needs an account",
}
# The tiny policies read letters, so that a chat prompt is long. LoRA of a lower
# rank has few enough parameters for a reference to be kept.
SMALLER = {
    "prompt_length=32": "prompt_length=96",
    "prompts * 20": "prompts",
    "completion_length=64": "completion_length=5",
    "completion_length=256": "completion_length=5",
    "[:64]": "[:8]",
    "=64": "=32",
    "=256": "=32",
    "=512": "=32",
    "enable_lora(8)": "enable_lora(1)",
    "epochs=20": "epochs=1",
    "epochs=10": "epochs=1",
    "epochs=3": "epochs=1",
    "epochs=2": "epochs=1",
    "num_samples=16": "num_samples=2",
    ", ...]": "]",
    ", ...)": ", max_prompt_length=32, max_completion_length=5)",
}
# Names that a page or an example may define for itself only.
GIVEN = ("bond", "policy", "reward", "prompts")


class Block(NamedTuple):
    """A block of code.

    Attributes:
        name: str. The page and line, or the public name that it describes.
        code: str.
        text: str. What its reader has read: the section up to its end, or the
            whole docstring.
    """

    name: str
    code: str
    text: str


def blocks(page):
    """The blocks of a page."""
    written, found = page.read_text("utf-8"), []
    # Comments in code are not headings.
    plain = CODE.sub(lambda match: " " * len(match[0]), written)
    for match in PYTHON.finditer(written):
        line = written.count("\n", 0, match.start()) + 1
        headings = HEADING.finditer(plain, 0, match.start())
        start = max((heading.start() for heading in headings), default=0)
        text = written[start : match.end()]
        found.append(Block(f"{page.name}:{line}", match[1], text))
    return found


def examples():
    """The examples of all public classes and functions, by their names."""
    pending, found = [("keras_bond", keras_bond)], {}
    while pending:
        prefix, thing = pending.pop()
        for name in thing.__all__:
            value, path = getattr(thing, name), f"{prefix}.{name}"
            if inspect.ismodule(value):
                pending.append((path, value))
            elif callable(value):
                text = inspect.cleandoc(value.__doc__ or "") + "\n"
                for code in PYTHON.findall(text):
                    found[path] = Block(path, code, text)
    return found


def run(code, names):
    """Runs a block on tiny models; returns the value of its last line."""
    for written, smaller in SMALLER.items():
        code = code.replace(written, smaller)
    names["bond"].reward = names["reward"]
    *body, last = ast.parse(code).body
    value = None
    if isinstance(last, ast.Expr):
        value = ast.Expression(last.value)
    else:
        body.append(last)
    exec(compile(ast.Module(body, []), "a block", "exec"), names)
    if value is not None:
        value = eval(compile(value, "a block", "eval"), names)
    keras.distribution.set_distribution(None)
    return value


def make_chat_policy(**arguments):
    """As a Gemma 3 of Google, which Transformers reads."""
    return make_policy(
        num_layers=1,
        proto=chat_vocabulary(),
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        **arguments,
    )


def make_bond():
    made = keras_bond.JBond(
        make_chat_policy(), length_reward, reference=True, **LENGTHS
    )
    made.compile(keras.optimizers.SGD(1e-5))
    return made


def make_names(bond):
    """What the code assumes to be defined."""
    return {
        "keras": keras,
        "keras_hub": keras_hub,
        "keras_bond": keras_bond,
        "np": np,
        "bond": bond,
        "policy": make_chat_policy(),
        "prompts": PROMPTS,
        "held_out": PROMPTS[:4],
        "held_out_pairs": make_pairs(),
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


def make_pairs():
    return [
        {"prompt": prompt, "chosen": "the quick fox", "rejected": "dog"}
        for prompt in PROMPTS
    ]


def write_files(folder):
    """Writes the files that the code assumes, but models."""
    (folder / "my_folder").mkdir()
    lines = "".join(json.dumps(pair) + "\n" for pair in make_pairs())
    (folder / "preferences.jsonl").write_text(lines)
    (folder / "prompts.txt").write_text("\n".join(9 * PROMPTS))


def replace_presets(replace):
    """Makes presets tiny policies, but for those that are local folders.

    Args:
        replace: `setattr`, or one that is undone.
    """
    for model in (keras_hub.models.Gemma3CausalLM, keras_hub.models.CausalLM):
        replace(model, "from_preset", _from_preset(model.from_preset))


def _from_preset(load):
    def from_preset(name, **arguments):
        if os.path.isdir(name):
            return load(name, **arguments)
        if name == "gemma3_instruct_4b":
            return pictures.make_policy("gemma3")
        return make_chat_policy(**arguments)

    return from_preset
