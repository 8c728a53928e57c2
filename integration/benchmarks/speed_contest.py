"""Contenders take turns, so that all see the same noise of the machine.

Each is a process that stays alive. A step of every contender makes a round;
contenders are compared round by round, and the median of these ratios counts.
"""

import dataclasses
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Compiling, the slowest of all answers, takes minutes at most.
PATIENCE = 1800.0
TAIL = 12


class WorkerDied(RuntimeError):
    """A contender that ended, or that has said nothing for too long."""


class Worker:
    """The contest's end of a contender's process.

    Args:
        name: str, of `speed_worker.CONTENDERS`.
        shape: a `speed_shapes.Shape`.
        label: str, where several workers are of one name.
        command: list of str that takes the place of `speed_worker.py`.
        patience: float. Seconds to wait for an answer.

    Attributes:
        facts: dict. What it said when it was ready.
    """

    def __init__(
        self, name, shape, label=None, command=None, patience=PATIENCE
    ):
        self.label = label or name
        self.shape = shape
        self.patience = patience
        self.facts = {}
        self._errors = tempfile.TemporaryFile("w+b")
        self._process = subprocess.Popen(
            command or _command(name, shape),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=_environment(),
        )
        self._answers = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def wait_until_ready(self):
        """Waits for the model to be built."""
        self.facts = self._take()

    def ask(self, **request):
        """Sends a request and waits for the answer.

        Returns:
            dict.

        Raises:
            WorkerDied: with the end of what it wrote to stderr.
        """
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except OSError:
            raise self._died("has ended") from None
        return self._take()

    def _take(self):
        try:
            line = self._answers.get(timeout=self.patience)
        except queue.Empty:
            message = f"has said nothing for {self.patience:g} s"
            raise self._died(message) from None
        if line is None:
            raise self._died("has ended")
        return json.loads(line)

    def _died(self, what):
        self.stop()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        tail = "\n".join(lines[-TAIL:])
        return WorkerDied(
            f"`{self.label}` {what}, exit status {self._process.returncode}; "
            f"the end of its stderr:\n{tail}"
        )

    def stop(self):
        """Ends the process: asks by closing its stdin, then kills it."""
        try:
            self._process.stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclasses.dataclass
class Record:
    """What is known of a contender after the contest.

    Attributes:
        worker: the `Worker`.
        warm_up: list of dict, answers to the steps that do not count.
        steps: list of dict, one a round.
        profiles: list of dict, answers to the steps that time their phases.
        facts: dict, of the worker and of `extras`.
        failure: str, why it failed; `""` if it did not.
    """

    worker: Worker
    warm_up: list = dataclasses.field(default_factory=list)
    steps: list = dataclasses.field(default_factory=list)
    profiles: list = dataclasses.field(default_factory=list)
    facts: dict = dataclasses.field(default_factory=dict)
    failure: str = ""
    threads: int | None = None

    def values(self, name):
        """One number of each round, float array `(rounds,)`."""
        return np.array([step[name] for step in self.steps])

    def do(self, what, keep=None, **request):
        """Asks the worker unless it failed; keeps the answer in a list."""
        if self.failure:
            return {}
        try:
            answer = self.worker.ask(do=what, **request)
        except WorkerDied as error:
            self.failure = str(error)
            return {}
        if keep is not None:
            keep.append(answer)
        return answer

    def step(self, keep, **request):
        return self.do("step", keep, threads=self.threads, **request)


def hold(workers, rounds, warm_up, profiles, extras=(), progress=print):
    """Holds the contest and ends the processes.

    Args:
        workers: list of `Worker`, just started.
        rounds: int. Steps of each that count.
        warm_up: int, at least 1. Steps of each before, which compile.
        profiles: int. Steps of each afterwards that time their phases.
        extras: iterable of str. Requests to make of every contender that
            says it takes them, whose answers become facts.
        progress: function of a str.

    Returns:
        dict from labels to `Record`.
    """
    records = [Record(worker) for worker in workers]
    try:
        for record in records:
            _get_ready(record, warm_up, progress)
        for i in range(rounds):
            progress(f"round {i + 1} of {rounds}")
            for record in records:
                record.step(record.steps)
        progress("steps that wait after every phase")
        for _ in range(profiles):
            for record in records:
                record.step(record.profiles, profile=True)
        for record in records:
            for extra in sorted({*extras} & {*record.facts.get("extras", ())}):
                progress(f"{record.worker.label}: {extra}")
                record.facts.update(record.do(extra))
    finally:
        for record in records:
            record.worker.stop()
    for record in records:
        if record.failure:
            progress(record.failure)
    return {record.worker.label: record for record in records}


def _get_ready(record, warm_up, progress):
    progress(f"{record.worker.label}: first step")
    try:
        record.worker.wait_until_ready()
    except WorkerDied as error:
        record.failure = str(error)
        return
    record.facts.update(record.worker.facts)
    chooses = record.facts.get("chooses_threads")
    # Several threads wait for each other for minutes on a busy machine.
    record.threads = 1 if chooses else None
    for _ in range(warm_up):
        record.step(record.warm_up)
    if chooses:
        _choose_threads(record)
    record.do("reset")


def _choose_threads(record):
    """Gives it the number of threads that is fastest for it: one, or all.

    All are tried once only where they are far slower, as they are on a
    machine that others use too.
    """
    seconds = {}
    for threads in (1, os.cpu_count() or 1, 1, os.cpu_count() or 1):
        if seconds.get(threads, 0.0) > 2 * seconds.get(1, np.inf):
            break
        taken = record.do("step", threads=threads).get("seconds", np.inf)
        seconds[threads] = min(taken, seconds.get(threads, np.inf))
    record.threads = min(seconds, key=seconds.get)


def paired_ratio(numerator, denominator):
    """Quartiles of the ratios round by round.

    Args:
        numerator, denominator: float arrays `(rounds,)`; rounds that only one
            of them finished are left out.

    Returns:
        tuple of float: median, first and third quartile.
    """
    rounds = min(len(numerator), len(denominator))
    if not rounds:
        return (float("nan"),) * 3
    ratios = np.asarray(numerator[:rounds]) / np.asarray(denominator[:rounds])
    return tuple(float(np.percentile(ratios, q)) for q in (50, 25, 75))


def _command(name, shape):
    arguments = json.dumps(dataclasses.asdict(shape))
    return [sys.executable, str(HERE / "speed_worker.py"), name, arguments]


def _environment():
    """The package of this checkout is measured, not an installed one."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
