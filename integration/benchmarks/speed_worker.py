"""The process of one contender, because Keras has one backend per process.

    python speed_worker.py CONTENDER '{"vocabulary": ..., ...}'

The contest writes one JSON object per line to the contender's stdin, and reads
one from its stdout for each. A training loop that is not ours to call, such as
`fit`, asks in between: `begin` before a step and `end` after it.
"""

import contextlib
import importlib
import json
import os
import resource
import sys
import time

from speed_shapes import Shape

# Name: module with `run(shape, channel)`, and Keras backend.
CONTENDERS = {
    "jax": ("speed_ours", "jax"),
    "tensorflow": ("speed_ours", "tensorflow"),
    "torch": ("speed_ours", "torch"),
    "kerashub": ("speed_kerashub", "jax"),
    "kerashub-tensorflow": ("speed_kerashub", "tensorflow"),
    "kerashub-torch": ("speed_kerashub", "torch"),
    "trl": ("speed_trl", "torch"),
    "machine": ("speed_machine", "jax"),
}
BACKENDS = ("jax", "tensorflow", "torch")


class Channel:
    """The contender's end.

    Attributes:
        handlers: dict from other requests than `"step"` to functions without
            arguments that return a dict.
        set_threads: function of a number of threads, or `None`.
        count_compilations: function that returns how many so far, or `None`.
        profiles: bool. Whether the present step times its phases.
    """

    def __init__(self):
        self._answers = _take_stdout()
        self.handlers = {"reset": _reset_peak}
        self.set_threads = None
        self.count_compilations = None
        self.profiles = False
        self._phases = {}
        self._compiled = 0
        self._idle_bytes = 0

    def ready(self, **facts):
        """Says that the model is built; `facts` go into the report."""
        self._idle_bytes = _memory_bytes("VmRSS")
        self._answer(
            ready=True, chooses_threads=bool(self.set_threads), **facts
        )

    def begin(self):
        """Waits for the next step, and serves other requests before it.

        Raises:
            SystemExit: when there is nothing more to do.
        """
        while (request := self._next())["do"] != "step":
            self._answer(**self.handlers[request["do"]]())
        if request.get("threads") and self.set_threads:
            self.set_threads(request["threads"])
        self.profiles = request.get("profile", False)
        self._phases = {}
        if self.count_compilations:
            self._compiled = self.count_compilations()
        self._start = time.perf_counter()
        self._cpu_start = time.process_time()

    def end(self, **facts):
        """Answers with what the step took; the device must be done."""
        facts["seconds"] = time.perf_counter() - self._start
        facts["cpu_seconds"] = time.process_time() - self._cpu_start
        if self.profiles:
            other = facts["seconds"] - sum(self._phases.values())
            facts["phases"] = {**self._phases, "other": other}
        if self.count_compilations:
            facts["compilations"] = self.count_compilations() - self._compiled
        self._answer(
            **facts, peak_bytes=_memory_bytes("VmHWM") - self._idle_bytes
        )

    @contextlib.contextmanager
    def phase(self, name):
        """Adds the time inside to a phase; the device must be done inside.

        What belongs to a phase within counts there alone.
        """
        start, inner = time.perf_counter(), sum(self._phases.values())
        yield
        taken = time.perf_counter() - start
        taken -= sum(self._phases.values()) - inner
        self._phases[name] = self._phases.get(name, 0.0) + taken

    def _next(self):
        line = sys.stdin.readline()
        if not line:
            raise SystemExit
        return json.loads(line)

    def _answer(self, **facts):
        print(json.dumps(facts), file=self._answers, flush=True)


def _take_stdout():
    """Keeps stdout for answers; what libraries print goes to stderr."""
    private = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return private


def _reset_peak():
    """Forgets the high-water mark of memory, where Linux allows that."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return {"was_reset": False}
    return {"was_reset": True}


def _memory_bytes(name):
    """`"VmRSS"`, memory in use, or `"VmHWM"`, the most so far; the latter for
    both where there is no Linux to ask."""
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith(f"{name}:"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(name, shape):
    module, backend = CONTENDERS[name]
    channel = Channel()
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    shape = Shape(**json.loads(shape))
    importlib.import_module(module).run(shape, channel)


if __name__ == "__main__":
    main(*sys.argv[1:])
