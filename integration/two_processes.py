"""Two processes train as one does, and survive each other.

    python integration/two_processes.py [--kill]

Two processes on this machine, two virtual devices each, train a tiny policy
together: each scores its own half of the rows with a function on the host.
Their weights must be those of one process with four devices. With `--kill` the
second is killed in its fifth step: the first must end with a message instead of
waiting forever, and both, started again, must continue from their last backup
to the same weights. Ends with exit status 1 if something differs.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

DEVICES, EPOCHS, BATCH = 4, 3, 4
KILLED_IN_STEP = 5
PATIENCE = 180
TOLERANCE = 1e-5


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def work(process, processes, port, folder, kill):
    """What one of the processes does."""
    import keras
    import numpy as np

    import keras_bond

    address = f"127.0.0.1:{port}"
    if processes > 1:
        keras.distribution.initialize(
            ",".join([address] * processes), processes, process
        )
    keras.distribution.set_distribution(keras.distribution.DataParallel())

    from tests import numeric
    from tests import tiny

    seen, steps = [], 0

    def reward(prompts, completions):
        nonlocal steps
        steps += 1
        seen.append(len(completions))
        if kill and process == 1 and steps == KILLED_IN_STEP:
            os.kill(os.getpid(), signal.SIGKILL)
        return [sum(map(ord, text)) % 97 / 97.0 for text in completions]

    bond = keras_bond.JBond(
        tiny.make_policy(num_layers=1),
        reward,
        max_prompt_length=12,
        max_completion_length=5,
        seed=1,
    )
    bond.compile(keras.optimizers.SGD(0.01))
    bond.fit(
        tiny.PROMPTS,
        batch_size=BATCH,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[
            keras_bond.callbacks.AnchorEMA(0.02),
            # One folder for both, there before either looks for it.
            keras.callbacks.BackupAndRestore(
                folder / "backup", delete_checkpoint=False
            ),
        ],
    )
    completions = bond.generate(tiny.PROMPTS[:3])
    values = numeric.values_of([*bond.policy.variables, *bond.anchor.values])
    np.savez(folder / f"{process}_of_{processes}.npz", *values)
    (folder / f"{process}_of_{processes}.json").write_text(
        json.dumps({"scored": seen, "completions": completions})
    )


def start(folder, processes, kill=False):
    """Starts the processes; returns them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    others = os.environ.get("XLA_FLAGS", "")
    flag = "--xla_force_host_platform_device_count"
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{others} {flag}={DEVICES // processes}",
    }
    return [
        subprocess.Popen(
            [
                sys.executable,
                __file__,
                "--worker",
                json.dumps([i, processes, port, str(folder), kill]),
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=open(folder / f"{i}_of_{processes}.txt", "w"),
        )
        for i in range(processes)
    ]


def wait(running):
    """Waits for all; returns their exit statuses and how long it took."""
    began = time.time()
    for process in running:
        process.wait(timeout=PATIENCE)
    return [p.returncode for p in running], time.time() - began


def train(folder, processes):
    """Trains to the end; returns what each process has to show."""
    (folder / "backup").mkdir(exist_ok=True)
    statuses, _ = wait(start(folder, processes))
    if any(statuses):
        print((folder / f"0_of_{processes}.txt").read_text()[-3000:])
        raise SystemExit(f"exit statuses {statuses}")
    return [
        json.loads((folder / f"{i}_of_{processes}.json").read_text())
        for i in range(processes)
    ]


def largest_difference(folder, processes):
    """Between the weights of each process and those of the only one."""
    import numpy as np

    one = np.load(folder / "0_of_1.npz")
    others = [np.load(folder / f"{i}_of_{processes}.npz") for i in range(2)]
    return max(
        float(np.max(np.abs(one[name] - other[name])))
        for other in others
        for name in one.files
    )


def report(folder, alone, together):
    """Prints what was compared; returns whether all agree."""
    difference = largest_difference(folder, 2)
    same = all(p["completions"] == alone[0]["completions"] for p in together)
    print(
        f"one process scored {alone[0]['scored']}, two scored "
        f"{[p['scored'] for p in together]} completions step by step; "
        f"weights differ by {difference:.1e}; completions afterwards "
        f"{'the same' if same else 'DIFFER'}"
    )
    return same and difference <= TOLERANCE


def kill_one(folder):
    """Kills the second process; prints how the first one ends."""
    (folder / "backup").mkdir()
    statuses, seconds = wait(start(folder, 2, kill=True))
    lines = (folder / "0_of_2.txt").read_text().strip().splitlines()
    message = [line for line in lines if "Terminating" in line] or lines
    print(
        f"killed the second in step {KILLED_IN_STEP}: exit statuses "
        f"{statuses}, all ended after {seconds:.0f} s; the first said:"
    )
    print(f"  {message[-1][:400]}")
    return statuses[0] != 0


def main():
    arguments = parse_arguments()
    if arguments.worker:
        process, processes, port, folder, kill = arguments.worker
        work(process, processes, port, pathlib.Path(folder), kill)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        alone = train(folder, 1)
        shutil.rmtree(folder / "backup")
        agree = not arguments.kill or kill_one(folder)
        together = train(folder, 2)
        agree &= report(folder, alone, together)
    sys.exit(not agree)


if __name__ == "__main__":
    main()
