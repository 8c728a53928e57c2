"""What the doctor found, and where."""

import dataclasses
import sys

import keras
from keras import ops

from keras_bond import backend
from keras_bond.version import __version__

LABELS = {True: "ok", False: "WRONG", None: "?"}


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: str. What was checked.
        passed: bool. Whether it is right, or `None` if the numbers are not
            precise enough to tell.
        detail: str. What was measured, and its tolerance.
        remedy: str. What a failure means, and how to fix it.
    """

    name: str
    passed: bool | None
    detail: str
    remedy: str

    def __str__(self):
        line = f"{LABELS[self.passed]:<6}{self.name}: {self.detail}"
        return f"{line}\n      {self.remedy}" if self.passed is False else line


@dataclasses.dataclass(frozen=True)
class Report:
    """What `keras_bond.doctor` found; `print(report)` shows it.

    Attributes:
        versions: str. Of the packages; backend, dtype, device and precision.
        checks: list of `Check`.
        passed: bool. Whether no check failed.
    """

    versions: str
    checks: list

    @property
    def passed(self):
        return not self._names(False)

    @property
    def summary(self):
        """str. One line that names the checks that did not pass, if any."""
        passed = f"{len(self._names(True))} of {len(self.checks)} checks passed"
        wrong, vague = (", ".join(self._names(x)) for x in (False, None))
        wrong = wrong and f"; WRONG: {wrong}"
        vague = vague and f"; not precise enough to tell: {vague}"
        return f"{passed}{wrong}{vague}."

    def _names(self, passed):
        return [c.name for c in self.checks if c.passed is passed]

    def __str__(self):
        return "\n".join(map(str, [self.versions, *self.checks, self.summary]))


def describe_installation(policy, precision):
    """One line: packages and their versions, dtype, device, precision."""
    import keras_hub

    # Keras has imported the backend, and only `keras_bond.backend` may.
    backend_version = sys.modules[backend.name].__version__
    # TensorFlow gives the whole address of a device.
    device = str(ops.zeros(()).device).split("device:")[-1].lower()
    return (
        f"keras_bond {__version__}, keras {keras.__version__}, "
        f"keras_hub {keras_hub.__version__}, {backend.name} {backend_version}, "
        f"{policy.backbone.dtype_policy.name}, {device}, "
        f"precise to {precision:.0e}"
    )
