"""Runs code of the documentation where only one extra is installed.

`python -m tests.docs.only_extras RESULTS [pyproject.toml]` tries each block
that names an extra twice: without the packages of the extra, where it must be
refused, and with them, where it must run. All other optional packages cannot
be imported. All extras share a process, since starting one takes seconds:
modules of packages that are hidden are put aside, not imported again.
"""

import importlib
import importlib.metadata
import json
import os
import pathlib
import sys
import tempfile
import traceback
import types
from importlib.machinery import PathFinder

from packaging.utils import canonicalize_name

from tests.docs import extras

BACKEND = "jax"
# Blocks that `test_code.py` leaves out, and whose extra is tested here.
RUN_HERE = {"export_saved_model", "save_adapters", "verify_saved_model"}
# Blocks that contain one of these are for another environment.
LEFT_OUT = (
    # Reads what `export_saved_model` writes, see `import_only`.
    "report = keras_bond.export.verify_saved_model",
    # Continues another block.
    "load_lora_weights",
    # Draws for seconds; other figures are drawn.
    "weight_front",
)


class Installed:
    """Finds modules of some distributions only, in place of `PathFinder`."""

    def __init__(self):
        self._modules = extras.modules()
        self._allowed = set()
        self._aside = {}
        sys.meta_path[sys.meta_path.index(PathFinder)] = self

    def allow(self, names):
        """Hides all distributions but those of these names."""
        self._allowed = names
        self._move(sys.modules, self._aside, hidden=True)
        self._move(self._aside, sys.modules, hidden=False)

    def find_spec(self, name, path=None, target=None):
        if self._is_hidden(name):
            return None
        return PathFinder.find_spec(name, path, target)

    def find_distributions(self, *arguments, **keywords):
        for found in PathFinder.find_distributions(*arguments, **keywords):
            if canonicalize_name(found.name) in self._allowed:
                yield found

    def invalidate_caches(self):
        PathFinder.invalidate_caches()

    def _is_hidden(self, name):
        names = self._modules.get(name.partition(".")[0])
        return names is not None and not names & self._allowed

    def _move(self, source, target, hidden):
        for name in list(source):
            if self._is_hidden(name) == hidden:
                target[name] = source.pop(name)


class Counting:
    """A reward that knows whether anything was drawn."""

    __name__ = "counting"

    def __init__(self):
        self.calls = 0

    def __call__(self, prompts, completions):
        self.calls += 1
        return [float(len(completion)) for completion in completions]


class Enough(Exception):
    """The rest is tested elsewhere."""


def import_only(arguments):
    """Imports what an export imports; `tests/export` runs its processes."""
    for name in ("verify", "signatures", "text", "byte_pair"):
        importlib.import_module(f"keras_bond.export.serving.{name}")
    raise Enough


def write_questions(folder):
    """What `tfds.load` returns for a data set with questions and answers."""
    import tensorflow_datasets as tfds

    rows = [{"question": "a b", "answer": "so #### 1"}] * 8
    text = tfds.features.Text()
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name="questions",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"question": text, "answer": text}),
        split_datasets={"train": list(enumerate(rows))},
        data_dir=folder,
        file_format="array_record",
        disable_shuffling=True,
    )
    tfds.load = lambda name, split: builder.as_data_source(split)


def prepare(extra, folder):
    """Makes what the code of an extra reads."""
    if extra == "hub":
        from tests.docs import folders

        folders.write(folder)
    if extra == "tfds":
        write_questions(folder)


def owner(message, wanted, found):
    """The extra that a message names, itself or by one of its packages."""
    for extra in wanted:
        if f"extra `{extra}`" in message:
            return extra
    message = message.replace("_", "-")
    for extra in wanted:
        if any(name in message for name in extras.names_of(found[extra])):
            return extra
    return None


class Environments:
    """Runs blocks with one extra, and without it.

    Args:
        project: path of the `pyproject.toml`.
    """

    def __init__(self, project):
        always, self.extras = extras.read(project)
        always = [*always, *self.extras[BACKEND]]
        self.optional = extras.optional(self.extras)
        self.bare = extras.closure(always)
        self.full = {
            extra: extras.closure([*always, *self.extras[extra]])
            for extra in self.optional
        }
        self.installed = Installed()
        # KerasHub looks for safetensors once, while it is imported.
        self.installed.allow(self.full["hub"])
        from keras_bond.export import processes
        from tests.docs import blocks

        self.blocks = blocks
        self.left_out = {*LEFT_OUT, *blocks.NOT_RUN} - RUN_HERE
        processes._run = import_only
        blocks.replace_presets(setattr)
        # JAX has compiled this one's programs for the tests of all blocks.
        self.names = blocks.make_names(blocks.make_bond())
        adapted = blocks.make_chat_policy()
        adapted.backbone.enable_lora(1)
        self.adapted = types.SimpleNamespace(policy=adapted)

    def all_blocks(self):
        pages = map(self.blocks.blocks, self.blocks.PAGES)
        yield from (block for page in pages for block in page)
        yield from self.blocks.examples().values()

    def try_block(self, block):
        """Returns a dict of what happened; `None` if it needs no extra."""
        wanted = sorted(extras.named(block.text) & set(self.optional))
        if not wanted or any(sign in block.code for sign in self.left_out):
            return None
        packages = [extras.names_of(self.extras[extra]) for extra in wanted]
        self.installed.allow(self.bare.difference(*packages))
        message, _, drew = self._run(block)
        if message is None:
            return None
        extra = owner(message, wanted, self.extras)
        line = {"block": block.name, "extra": extra, "message": message}
        if extra is not None:
            self.installed.allow(self.full[extra])
            line["drew"], line["failure"] = drew, self._run(block, extra)[1]
        return line

    def _run(self, block, extra=None):
        """Returns how the code fails, in short and in full; what was drawn."""
        reward, message, failure = Counting(), None, None
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            folder = pathlib.Path(folder)
            self.blocks.write_files(folder)
            names = {**self.names, "reward": reward}
            if extra == "hub":
                # It is saved, and not trained.
                names["bond"] = self.adapted
            try:
                prepare(extra, folder)
                self.blocks.run(block.code, names)
            except Enough:
                pass
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                failure = traceback.format_exc()
            os.chdir(extras.ROOT)
        return message, failure, reward.calls


def main(results, project=extras.ROOT / "pyproject.toml"):
    environments = Environments(pathlib.Path(project))
    lines = map(environments.try_block, environments.all_blocks())
    lines = [line for line in lines if line is not None]
    pathlib.Path(results).write_text(json.dumps(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
