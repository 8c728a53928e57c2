"""From the records of a contest to the numbers of its report."""

import dataclasses

import numpy as np
import speed_contest
import speed_costs
from speed_shapes import Shape

MACHINE = "machine"


@dataclasses.dataclass
class Contender:
    """The numbers of one contender.

    Attributes:
        name: str.
        shape: a `speed_shapes.Shape`.
        machine: `speed_contest.Record` of what measures the machine.
        failure: str, `""` if it finished.
        first: float. Seconds of the first step, which compiles.
        seconds: float array `(rounds,)`.
        ratio: tuple of float: median and quartiles of its time over that of
            the first contender, round by round.
        cpu_ratio: the same of the processor time of all its threads, which
            others on the machine disturb less.
        profiles: list of dict of seconds by phase.
        compilations: int in all rounds, or `None` where nothing compiles.
        peak_bytes: int. High-water mark of the process over what it held
            when the model was built.
        threads: int that it was given, or `None`.
        facts: dict, what else it said.
    """

    name: str
    shape: Shape
    machine: speed_contest.Record
    failure: str
    first: float
    seconds: np.ndarray
    ratio: tuple
    cpu_ratio: tuple
    profiles: list
    compilations: int | None
    peak_bytes: int
    threads: int | None
    facts: dict

    @property
    def median(self):
        """Median seconds of a step, NaN if there is none."""
        return float(np.median(self.seconds)) if self.seconds.size else np.nan

    @property
    def phases(self):
        """Median seconds by phase."""
        names = dict.fromkeys(n for p in self.profiles for n in p)
        return {
            name: float(np.median([p.get(name, 0.0) for p in self.profiles]))
            for name in names
        }

    def over_least_step(self):
        """Median of measured over least possible time, round by round."""
        costs = speed_costs.step(self.shape)
        return _over_least(self.seconds, costs, self.machine.steps)

    def over_least(self, phase):
        """The same of a phase that `speed_costs` knows."""
        costs = speed_costs.phases(self.shape)[phase]
        measured = [profile.get(phase, 0.0) for profile in self.profiles]
        return _over_least(measured, costs, self.machine.profiles)


@dataclasses.dataclass
class Result:
    """One contest.

    Attributes:
        label: str.
        shape: a `speed_shapes.Shape`.
        contenders: list of `Contender`, the one all are compared with first.
        machine: dict of the median `flops` and `bytes` a second.
    """

    label: str
    shape: Shape
    contenders: list
    machine: dict

    def least(self, phase, shape=None):
        """The roofline's seconds of a phase, `None` if it has none."""
        costs = speed_costs.phases(shape or self.shape).get(phase)
        return costs and speed_costs.seconds(costs, self.machine)

    def least_step(self, shape=None):
        """The roofline's seconds of a step, of another shape if given."""
        costs = speed_costs.step(shape or self.shape)
        return speed_costs.seconds(costs, self.machine)


def summarize(label, shape, records):
    """Turns the records of a contest into a `Result`.

    Args:
        label: str.
        shape: a `speed_shapes.Shape`.
        records: dict from names to `speed_contest.Record`, with `"machine"`.
    """
    machine = records.pop(MACHINE)
    if machine.failure:
        raise RuntimeError(machine.failure)
    rates = {
        name: float(np.median([step[name] for step in machine.steps]))
        for name in ("flops", "bytes", "read_bytes", "copy_bytes")
    }
    others = list(records.values())
    contenders = [_contender(r, others[0], machine) for r in others]
    return Result(label, shape, contenders, rates)


def _contender(record, reference, machine):
    counts = [step.get("compilations") for step in record.steps]
    return Contender(
        name=record.worker.label,
        shape=record.worker.shape,
        machine=machine,
        failure=record.failure,
        first=record.warm_up[0]["seconds"] if record.warm_up else np.nan,
        seconds=record.values("seconds"),
        ratio=speed_contest.paired_ratio(
            record.values("seconds"), reference.values("seconds")
        ),
        cpu_ratio=speed_contest.paired_ratio(
            record.values("cpu_seconds"), reference.values("cpu_seconds")
        ),
        profiles=[profile["phases"] for profile in record.profiles],
        compilations=None if None in counts else sum(counts),
        peak_bytes=max((s["peak_bytes"] for s in record.steps), default=0),
        threads=record.threads,
        facts=record.facts,
    )


def _over_least(measured, costs, rates):
    least = [speed_costs.seconds(costs, rate) for rate in rates]
    return speed_contest.paired_ratio(measured, least)[0]


def step_rows(results):
    """One row for each counted step."""
    for result in results:
        for contender in result.contenders:
            for i, seconds in enumerate(contender.seconds):
                yield {
                    "shape": result.label,
                    "contender": contender.name,
                    "round": i,
                    "seconds": seconds,
                }


def phase_rows(results):
    """One row for each phase of each contender."""
    for result in results:
        for contender in result.contenders:
            for phase, seconds in contender.phases.items():
                yield {
                    "shape": result.label,
                    "contender": contender.name,
                    "phase": phase,
                    "seconds": seconds,
                    "least_seconds": result.least(phase),
                }


def memory_rows(sweeps):
    """Temporary memory of each stage of each contender, JAX."""
    for sweep in sweeps:
        for contender in sweep.contenders:
            for stage, size in contender.facts.get("temp_bytes", {}).items():
                yield {
                    "sweep": sweep.label,
                    "value": contender.name,
                    "stage": stage,
                    "temp_bytes": size,
                    "beyond_embedding": beyond_embedding(contender, size),
                }


def beyond_embedding(contender, temp_bytes):
    """Temporary bytes of learning less one gradient of the embedding.

    In full fine-tuning the embedding has a gradient of its own size, which no
    program can do without; with LoRA it has none.
    """
    if temp_bytes is None or contender.shape.lora_rank:
        return temp_bytes
    gradient = speed_costs.NUMBER * contender.shape.embedding_weights
    return temp_bytes - gradient
