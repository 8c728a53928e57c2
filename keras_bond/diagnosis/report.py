"""What an examination found."""

import dataclasses
import sys

import keras

from keras_bond import backend
from keras_bond.version import __version__


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: str. What must hold.
        passed: bool. Whether it does.
        detail: str. What was measured, and its tolerance.
        remedy: str. What a failure means, and how to mend it.
    """

    name: str
    passed: bool
    detail: str
    remedy: str

    def __str__(self):
        line = f"{'ok' if self.passed else 'WRONG':<6}{self.name}: "
        line += self.detail
        return line if self.passed else f"{line}\n      {self.remedy}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What `keras_bond.doctor` found; `print(report)` shows it.

    Attributes:
        versions: str. Of the packages; backend, dtype and device.
        checks: list of `Check`.
        passed: bool. Whether nothing is wrong.
    """

    versions: str
    checks: list

    @property
    def passed(self):
        return all(check.passed for check in self.checks)

    @property
    def summary(self):
        """str. One line that says what is wrong, if anything."""
        wrong = [check.name for check in self.checks if not check.passed]
        if not wrong:
            return f"All {len(self.checks)} checks passed."
        return (
            f"{len(wrong)} of {len(self.checks)} checks failed: "
            f"{', '.join(wrong)}."
        )

    def __str__(self):
        return "\n".join(map(str, [self.versions, *self.checks, self.summary]))


def describe_installation(policy):
    """One line: packages and their versions, dtype of `policy`, device."""
    import keras_hub

    versions = {
        "keras_bond": __version__,
        "keras": keras.__version__,
        "keras_hub": keras_hub.__version__,
        # Keras has imported it, and only `backend` may.
        backend.name: sys.modules[backend.name].__version__,
    }
    return ", ".join(
        [
            *(f"{name} {version}" for name, version in versions.items()),
            policy.backbone.dtype_policy.name,
            _device(),
        ]
    )


def _device():
    """`cuda:0` and the like, of which TensorFlow gives a whole address."""
    address = str(keras.ops.zeros(()).device)
    return address.split("device:")[-1].lower()


def with_tolerance(measured, tolerance, unit=""):
    """`measured` and `tolerance` in words."""
    return f"{measured:.1e}{unit} (tolerance {tolerance:.0e})"
