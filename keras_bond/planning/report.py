"""What a plan says."""

import dataclasses

from keras_bond.planning.entries import PASSES
from keras_bond.planning.entries import ROLLOUT

GIB, MIB = 2**30, 2**20


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step of training needs; `print(plan)` shows it.

    A step is four passes one after the other: `"reading"` the prompts,
    `"decoding"` completions of them, `"judging"` these with the other weight
    sets, and `"learning"` from them.

    Attributes:
        title: str. What was planned.
        entries: list of `Entry`: what takes memory, and when.
        shapes: dict from each pass to str, its rows and tokens.
        decode_steps: int. Most tokens that are drawn one after the other.
        device: str. Name of the device.
        device_bytes: int, or `None` where it is not known.
        problems: list of str. What would stop the run; each says the rule, a
            fix, and what was received.
        notes: list of str. What could not be counted.
        fits: bool. Whether there is none.
        peaks: dict from each pass to int. Bytes in memory during it.
        rollout_bytes: int. Most bytes up to the rewards.
        learning_bytes: int. Bytes of the learning pass.
        peak_bytes: int. The larger of the two.
        largest: str. The pass that needs them.
    """

    title: str
    entries: list
    shapes: dict
    decode_steps: int
    device: str
    device_bytes: int | None
    problems: list
    notes: list

    @property
    def fits(self):
        return not self.problems

    @property
    def peaks(self):
        return peaks_of(self.entries)

    @property
    def rollout_bytes(self):
        return max(self.peaks[name] for name in ROLLOUT)

    @property
    def learning_bytes(self):
        return self.peaks["learning"]

    @property
    def peak_bytes(self):
        return max(self.rollout_bytes, self.learning_bytes)

    @property
    def largest(self):
        return max(self.peaks, key=self.peaks.get)

    def check(self):
        """Refuses a run that cannot go well.

        Raises:
            ValueError: that lists the problems.
        """
        if self.problems:
            raise ValueError("\n".join(self.problems))

    def __str__(self):
        return "\n".join(
            [
                self.title,
                f"on {self._device()}, at most {self.decode_steps:,} decode "
                "steps",
                "",
                *map(_line, self.entries),
                "",
                *map(self._peak_line, PASSES),
                "",
                *self.notes,
                *(self.problems or [self._verdict()]),
            ]
        )

    def _device(self):
        if self.device_bytes is None:
            return f"{self.device} of unknown memory"
        return f"{self.device} of {readable(self.device_bytes)}"

    def _peak_line(self, name):
        mark = ", the most" if name == self.largest else ""
        size = readable(self.peaks[name])
        return f"{'all while ' + name:<22}{size:>10}  {self.shapes[name]}{mark}"

    def _verdict(self):
        if self.device_bytes is None:
            return (
                "Whether it fits is unknown: the device does not tell its "
                "memory; pass `device_memory=`."
            )
        spare = readable(self.device_bytes - self.peak_bytes)
        return f"It fits, with {spare} to spare."


def peaks_of(entries):
    """Bytes in memory during each pass."""
    return {
        name: sum(e.bytes for e in entries if name in e.passes)
        for name in PASSES
    }


def readable(num_bytes):
    """`"1.25 GiB"`, or in MiB or KiB where that is short."""
    for unit, size in (("GiB", GIB), ("MiB", MIB)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"


def _line(entry):
    return f"{entry.name:<22}{readable(entry.bytes):>10}  {entry.explanation}"
