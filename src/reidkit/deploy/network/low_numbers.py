"""Numbers in float16 and bfloat16: what they hold of float32. NumPy is all it takes."""

import numpy as np

from reidkit.deploy.network.layers import Kind
from reidkit.deploy.network.weights import bfloat16_bits

_STEP: dict[Kind, float] = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
"""From 1 to the next number: rounding changes a number by half of that at most."""


def is_held(values: np.ndarray, kind: Kind) -> bool:
    """Whether a type holds numbers: all in its range, and as a whole not further away than rounding brings them.

    As a whole, since the many weights of next to nothing that trained networks have may well be flushed to zero.
    """
    if kind == "float32":
        return True
    low, finite = rounded(values, kind), np.isfinite(values)
    if not np.isfinite(low[finite]).all():
        return False
    values, low = values[finite], low[finite]
    peak = float(np.abs(values).max(initial=0.0))
    if peak == 0:
        return True
    error = np.linalg.norm((low.astype(np.float64) - values) / peak)
    return bool(error <= _STEP[kind] * np.linalg.norm(values.astype(np.float64) / peak))


def rounded(values: np.ndarray, kind: Kind) -> np.ndarray:
    """Float32 numbers as the low type has them; infinite where they leave its range."""
    if kind == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    return (bfloat16_bits(values).astype(np.uint32) << 16).view(np.float32)
