"""What the doctor found, and where."""

import dataclasses
import sys

import keras
import numpy as np
from keras import ops

from keras_bond import backend
from keras_bond.version import __version__

# A product of float32 matrices is off by 1e-7, in the tensor cores of a GPU
# (TF32) or in a TPU's bfloat16 by 1e-4 and more.
MOST_FLOAT32_ERROR = 1e-5


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: str. What was checked.
        passed: bool. Whether it is right.
        detail: str. What was measured, and its tolerance.
        remedy: str. What a failure means, and how to fix it.
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
        versions: str. Of the packages; backend, dtype, device and precision.
        checks: list of `Check`.
        passed: bool. Whether all checks passed.
    """

    versions: str
    checks: list

    @property
    def passed(self):
        return all(check.passed for check in self.checks)

    @property
    def summary(self):
        """str. One line that names the checks that failed, if any."""
        wrong = [check.name for check in self.checks if not check.passed]
        if not wrong:
            return f"All {len(self.checks)} checks passed."
        count = f"{len(wrong)} of {len(self.checks)}"
        return f"{count} checks failed: {', '.join(wrong)}."

    def __str__(self):
        return "\n".join(map(str, [self.versions, *self.checks, self.summary]))


def describe_installation(policy, product_error):
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
        f"float32 products to {product_error:.0e}"
    )


def measure_product_error():
    """Relative error of a float32 matrix product on this device."""
    left, right = np.random.default_rng(0).normal(size=(2, 256, 256))
    product = ops.matmul(*(ops.cast(x, "float32") for x in (left, right)))
    error = ops.convert_to_numpy(product) - left @ right
    return float(np.std(error) / np.std(left @ right))
