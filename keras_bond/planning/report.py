"""The table that a plan prints."""

import dataclasses

from keras_bond.planning.entries import PASSES

GIB, MIB = 2**30, 2**20


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step of training needs; `print(plan)` shows it.

    A step is three passes one after the other: `"decoding"` of completions,
    `"log-probs"` of these by the anchor and the reference, and `"learning"`
    from them.

    Attributes:
        title: str. What was planned.
        entries: list of `Entry`: what takes memory, and when.
        device: str. Name of the device.
        device_bytes: int, or `None` where it is not known.
        problems: list of str. What would stop the run; each says the rule, a
            fix, and what was received.
        notes: list of str. What could not be counted.
        fits: bool. Whether there is no problem.
        peaks: dict from each pass to int. Bytes in memory during it.
        peak_bytes: int. The largest of them.
        largest: str. The pass that needs it.
    """

    title: str
    entries: list
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
    def peak_bytes(self):
        return max(self.peaks.values())

    @property
    def largest(self):
        return max(self.peaks, key=self.peaks.get)

    def check(self):
        """Raises an error if there are problems.

        Raises:
            ValueError: that lists them.
        """
        if self.problems:
            raise ValueError("\n".join(self.problems))

    def __str__(self):
        memory = "unknown memory"
        verdict = (
            "Whether it fits is unknown: the device does not tell its memory; "
            "pass `device_memory=`."
        )
        if self.device_bytes is not None:
            memory = readable(self.device_bytes)
            spare = readable(self.device_bytes - self.peak_bytes)
            verdict = f"It fits, with {spare} to spare."
        return "\n".join(
            [
                self.title,
                f"on {self.device} of {memory}",
                "",
                *(_line(e.name, e.bytes, e.explanation) for e in self.entries),
                "",
                *(
                    _line(f"peak, {name}", size, "")
                    for name, size in self.peaks.items()
                ),
                "",
                *self.notes,
                *(self.problems or [verdict]),
            ]
        )


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


def _line(name, num_bytes, text):
    return f"{name:<22}{readable(num_bytes):>10}  {text}".rstrip()
