"""Sizes in bytes, computed from shapes and dtypes."""

import math
import re


def itemsize(dtype):
    """Returns the bytes of one value of a dtype, which is given by name."""
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else 1


def num_values(variables):
    """Returns the number of values of variables, each counted once."""
    return sum(math.prod(v.shape) for v in _each_once(variables))


def num_bytes(variables, dtype=None):
    """Returns the bytes of variables, each counted once.

    Args:
        variables: iterable of `keras.Variable`.
        dtype: str. A dtype to use instead of the variables' own.
    """
    return sum(
        math.prod(v.shape) * itemsize(dtype or v.dtype)
        for v in _each_once(variables)
    )


def _each_once(variables):
    return {id(variable): variable for variable in variables}.values()
