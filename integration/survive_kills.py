"""A training run that is killed repeatedly ends like an uninterrupted one.

    python integration/survive_kills.py --backend jax [--kills 20] [--seed 0]

Trains LoRA adapters of a tiny policy in a process of its own, and kills that
with SIGKILL at random moments: in a rollout, a reward, the scoring of its
answers, the learning stage (and its compilation), a write of the backup. Each
time it is started again and continues from
`keras.callbacks.BackupAndRestore`. In the end policy, anchor, optimizer and
counters must be bit for bit those of a run that nobody killed. Ends with exit
status 1 if something differs.
"""

import argparse
import functools
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
STAGES = ("rollout", "reward", "scoring", "learning", "write")
BATCH = 2
# A life ends in one of its first steps; an epoch has two.
MOST_STEPS = 3
# Maximum number of seconds a stage runs before it is killed.
LONGEST_DELAY = 0.05


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--backend", choices=("jax", "tensorflow", "torch"), required=True
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--kill", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


class Stages:
    """Prints the stage that a process is in, and kills it in one of them.

    The process is its own killer, because another one learns too late that a
    stage of milliseconds has begun.

    Args:
        kill: `(stage, number, delay)`: the stage, which one of them, and the
            seconds after its start; or `None`.
    """

    def __init__(self, kill):
        self.stage, self.number, self.delay = kill or (None, 0, 0)
        self.begun = 0

    def begin(self, stage):
        print(f"stage {stage}", flush=True)
        self.begun += stage == self.stage
        if stage == self.stage and self.begun == int(self.number):
            death = os.getpid(), signal.SIGKILL
            threading.Timer(float(self.delay), os.kill, death).start()

    def of(self, stage, function, following):
        """A function that is a stage, with the stage that follows it."""

        @functools.wraps(function)
        def call(*arguments, **kwargs):
            self.begin(stage)
            returned = function(*arguments, **kwargs)
            self.begin(following)
            return returned

        return call


def train(folder, epochs, stages):
    """What the process does that is killed."""
    sys.path.insert(0, str(ROOT))
    from tests import numeric  # isort: skip
    from tests import tiny  # isort: skip
    import keras
    import numpy as np

    import keras_bond

    policy = tiny.make_policy(num_layers=1)
    keras.utils.set_random_seed(0)
    policy.backbone.enable_lora(2)
    bond = keras_bond.JBond(
        policy,
        stages.of("reward", tiny.length_reward, "scoring"),
        max_prompt_length=8,
        max_completion_length=2,
        seed=1,
    )
    bond.compile(keras.optimizers.Adam(1e-5))
    bond.collect = stages.of("rollout", bond.collect, "learning")
    bond.save_weights = stages.of("write", bond.save_weights, "callbacks")
    backup = keras.callbacks.BackupAndRestore(
        folder / "backup", save_freq=1, delete_checkpoint=False
    )
    begin = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: print(
            f"begin {int(bond.optimizer.iterations)}", flush=True
        )
    )
    prompts = [text for text in tiny.PROMPTS if len(text) < 7]
    bond.fit(
        prompts,
        batch_size=BATCH,
        epochs=epochs,
        verbose=0,
        callbacks=[backup, begin],
    )
    values = numeric.values_of(
        [
            *bond.policy.variables,
            *bond.non_trainable_variables,
            *bond.optimizer.variables,
        ]
    )
    np.savez(folder / "last.npz", *values)


def run(arguments, folder, kill=None, start=0.0):
    """Runs the process once, to its end or its death.

    Args:
        arguments: what `parse_arguments` returned.
        folder: path. Of the run.
        kill: `(stage, number, delay)`: str, int and seconds, or `None`.
        start: float. When all began.

    Returns:
        `None`, or a row of the table: the moment, the stage that was asked
        for, the one it was in, and the step that this life began at.
    """
    command = [sys.executable, __file__, "--backend", arguments.backend]
    command += ["--kills", str(arguments.kills), "--worker", folder]
    command += ["--kill", *map(str, kill)] if kill else []
    process = subprocess.Popen(
        command,
        env={**os.environ, "KERAS_BACKEND": arguments.backend},
        stdout=subprocess.PIPE,
        stderr=open(folder / "errors.txt", "w"),
        text=True,
    )
    begun, stage = None, None
    for line in process.stdout:
        word, _, rest = line.strip().partition(" ")
        begun = int(rest) if word == "begin" else begun
        stage = rest if word == "stage" else stage
    if process.wait() == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        sys.exit((folder / "errors.txt").read_text())
    seconds = time.time() - start
    return f"{seconds:8.1f}  {kill[0]:8}  {stage:8}  {begun:6}"


def differences(folders):
    """Names of arrays that are not the same bits in both folders."""
    import numpy as np

    one, other = (np.load(folder / "last.npz") for folder in folders)
    return [
        name
        for name in one.files
        if one[name].tobytes() != other[name].tobytes()
    ]


def main():
    arguments = parse_arguments()
    if arguments.worker:
        epochs = 2 * arguments.kills + 2
        train(arguments.worker, epochs, Stages(arguments.kill))
        return
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = pathlib.Path(folder, "a"), pathlib.Path(folder, "b")
        whole.mkdir()
        killed.mkdir()
        run(arguments, whole)
        start, kills = time.time(), 0
        print("kill  second    aimed at  died in   life began at step")
        while True:
            kill = None
            if kills < arguments.kills:
                stage = STAGES[kills % len(STAGES)]
                # Once compiled, most stages take a few milliseconds.
                delay = LONGEST_DELAY * generator.random() ** 3
                kill = (stage, generator.randint(1, MOST_STEPS), delay)
            row = run(arguments, killed, kill, start)
            if row is None:
                break
            kills += 1
            print(f"{kills:4}{row}", flush=True)
        different = differences((whole, killed))
        print(f"{kills} kills, {len(different)} arrays differ")
        sys.exit(bool(different) or kills < arguments.kills)


if __name__ == "__main__":
    main()
