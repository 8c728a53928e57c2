"""How many bytes values take, without making any."""

import math
import re


def itemsize(dtype):
    """Bytes of one value of a dtype, given by its name."""
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else 1


def num_values(variables):
    """How many values some variables hold, each variable counted once."""
    return sum(math.prod(v.shape) for v in _each_once(variables))


def num_bytes(variables, dtype=None):
    """Bytes of some variables, each counted once.

    Args:
        variables: iterable of `keras.Variable`.
        dtype: str, the dtype to count them in. Defaults to their own.
    """
    return sum(
        math.prod(v.shape) * itemsize(dtype or v.dtype)
        for v in _each_once(variables)
    )


def _each_once(variables):
    return {id(variable): variable for variable in variables}.values()
