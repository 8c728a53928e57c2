"""A training step stays readable: how many files it runs through."""

import os
import pathlib
import sys

import keras

import keras_bond
from tests.tiny import COMPILED_QUICKLY
from tests.tiny import PROMPTS
from tests.tiny import length_reward
from tests.tiny import make_policy

PACKAGE = pathlib.Path(keras_bond.__file__).parent
TRAINERS = {"anchored_trainer", "bond", "jbond", "policy_trainer"}


def test_a_step_enters_few_files():
    """At most 15 outside formulas and backends, three of them trainers'.

    Compilation included: it is the first step that is watched.
    """
    entered, prefix = set(), f"{PACKAGE}{os.sep}"

    # Called millions of times where a backend traces in Python.
    def watch(frame, event, argument):
        code = frame.f_code
        is_ours = event == "call" and code.co_filename.startswith(prefix)
        # PyTorch sets attributes of the trainer during a step.
        if is_ours and code.co_name != "__setattr__":
            entered.add(pathlib.Path(code.co_filename).relative_to(PACKAGE))

    class Watched(keras_bond.JBond):
        def train_step(self, *arguments):
            sys.setprofile(watch)
            try:
                return super().train_step(*arguments)
            finally:
                sys.setprofile(None)

    bond = Watched(
        make_policy(num_layers=1),
        length_reward,
        max_prompt_length=12,
        max_completion_length=3,
        seed=1,
    )
    bond.compile(keras.optimizers.SGD(1e-6), **COMPILED_QUICKLY)
    bond.fit(PROMPTS[:2], batch_size=2, verbose=0)
    others = {p for p in entered if p.parts[0] not in ("formulas", "backend")}
    assert len(others) <= 15, " ".join(sorted(map(str, others)))
    trainers = {p for p in others if p.stem in TRAINERS}
    assert len(trainers) <= 3, sorted(trainers)
    assert {"anchored_trainer", "bond"} <= {p.stem for p in trainers}
