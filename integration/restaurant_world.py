"""Restaurants: facts that people were asked to put into words.

The E2E data set (Novikova et al., 2017, arXiv 1706.09254) has several human
texts for each list of facts:

    name[Cotto], food[English], area[riverside], near[The Portland Arms] =>
    Cotto serves English food by the river, near The Portland Arms.

The reward reads the facts back out of a text, see `fact_rules.py`.
"""

import functools
import gzip
import json
import os
import pathlib
import random
import re

import fact_rules

FOLDER_VARIABLE = "KERAS_BOND_DATA"
BESIDE_THE_CHECKOUT = pathlib.Path(__file__).resolve().parents[2]


def find_data(folder=None):
    """Returns the folder that holds `e2e/`.

    Args:
        folder: path, or `None` for the environment variable KERAS_BOND_DATA.

    Raises:
        FileNotFoundError: if the data are not there.
    """
    folder = folder or os.environ.get(FOLDER_VARIABLE)
    found = pathlib.Path(folder or BESIDE_THE_CHECKOUT / "shared" / "data")
    if not (found / "e2e" / "e2e_train.jsonl.gz").exists():
        raise FileNotFoundError(
            f"E2E data not found: set {FOLDER_VARIABLE} to a folder that holds "
            f"e2e/. Received: {folder}"
        )
    return found


class Restaurants:
    """The lists of facts with their human texts, and the reward.

    Texts of the training part teach, lists of facts of the development part
    are held out: the two have no list of facts in common.

    Args:
        folder: path. Holds `e2e/e2e_train.jsonl.gz` and `e2e/e2e_dev.jsonl.gz`,
            a JSON object with `prompt` and `references` in each line.
    """

    def __init__(self, folder):
        self.train = read_jsonl(pathlib.Path(folder, "e2e/e2e_train.jsonl.gz"))
        self.dev = read_jsonl(pathlib.Path(folder, "e2e/e2e_dev.jsonl.gz"))
        facts = [parse_prompt(row["prompt"]) for row in self.train + self.dev]
        names = {
            f[slot] for f in facts for slot in ("name", "near") if slot in f
        }
        self.reader = fact_rules.Reader(names)

    def make_examples(self, count, seed):
        """Draws `count` prompts for training, with a human text for each.

        The lists of facts come in random order, each once before any comes
        again.

        Args:
            count: int. The number of examples.
            seed: int. The same seed gives the same examples.

        Returns:
            A dictionary of two lists of `count` strings, `"prompts"` and
            `"responses"`: what `keras_hub.models.CausalLM.fit` takes.
        """
        rng = random.Random(seed)
        rows = []
        while len(rows) < count:
            rows += rng.sample(self.train, len(self.train))
        return {
            "prompts": [format_prompt(row) for row in rows[:count]],
            "responses": [
                rng.choice(row["references"]) for row in rows[:count]
            ],
        }

    def held_out_prompts(self, count, seed):
        """Draws `count` different prompts of the development part.

        Raises:
            ValueError: if there are not so many.
        """
        if count > len(self.dev):
            raise ValueError(
                f"`count` must be at most {len(self.dev)}, the lists of facts "
                f"of the development part. Received: count={count}"
            )
        rows = random.Random(seed).sample(self.dev, count)
        return [format_prompt(row) for row in rows]

    def slot_coverage(self, prompts, completions, **columns):
        """Rewards a completion for the facts of its prompt, and no others.

        Each fact that is stated earns 1, each that is contradicted or made up
        costs 1, and the sum is divided by the number of facts. 1.0 means that
        everything is right.

        Args:
            prompts: list of str. Lists of facts, see `format_prompt`.
            completions: list of str. One text for each prompt.
            **columns: Ignored. The prompt holds all that is needed.

        Returns:
            A list of float, at most 1.
        """
        return [
            self.reader.score(_facts(prompt), completion)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def human_rewards(self, count=2000, seed=0):
        """What people earn: a check of the reward itself.

        Returns:
            two floats: the mean reward of human texts of the development part
            for their own facts, and for those of another list of facts.
        """
        rng = random.Random(seed)
        rows = rng.choices(self.dev, k=count)
        prompts = [format_prompt(row) for row in rows]
        texts = [rng.choice(row["references"]) for row in rows]
        own = self.slot_coverage(prompts, texts)
        shuffled = self.slot_coverage(prompts, rng.sample(texts, count))
        return sum(own) / count, sum(shuffled) / count


def read_jsonl(file):
    """Reads a compressed file with a JSON object in each line."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def format_prompt(row):
    """Writes the facts of a row as a prompt: `name[Cotto], ... =>`."""
    return row["prompt"] + " =>"


def parse_prompt(prompt):
    """Reads the facts of a prompt: a dictionary of slots and values."""
    return dict(re.findall(r"(\w[\w ]*)\[([^\]]*)\]", prompt))


# Every prompt is scored thousands of times.
_facts = functools.cache(parse_prompt)
