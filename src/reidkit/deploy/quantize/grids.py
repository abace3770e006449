"""Grids of eight bits: the step and the zero of each, and numbers on it."""

from typing import NamedTuple

import numpy as np

from reidkit.calibration import EngineKind, Range

LEVELS = 255
"""Steps across an unsigned grid; a signed one has 127 to either side, and leaves -128 out so that it is symmetric."""

_LEAST_NORMAL_FLOAT16, _MOST_FLOAT16 = 2.0**-14, 65504.0
_LEAST_STEP = 2.0**-60  # the product of two, which is a bias's step, is still a float32


class Grid(NamedTuple):
    """What a rounded value is told in: `(integer - zero) * step`.

    Attributes:
        step: between two neighbours, above 0.
        zero: the integer that stands for 0.
        dtype: uint8 or int8.
    """

    step: np.float32
    zero: int
    dtype: type[np.uint8] | type[np.int8]


def grid_of(values: Range, kind: EngineKind) -> Grid:
    """The grid of a range: over all of it and unsigned for processors, symmetric and signed for TensorRT.

    A range of nothing but 0 has a step of 1: what was 0 on every picture stays 0, and engines refuse a step of 0.
    """
    if values.low == values.high:
        return Grid(np.float32(1), 0, np.int8 if kind == "tensorrt" else np.uint8)
    if kind == "tensorrt":
        return Grid(_held_by_float16(max(-values.low / 127, values.high / 127, _LEAST_STEP)), 0, np.int8)
    step = np.float32(max((values.high - values.low) / LEVELS, _LEAST_STEP))
    return Grid(step, int(np.clip(np.rint(-values.low / step), 0, LEVELS)), np.uint8)


def weight_steps(weight: np.ndarray, axis: int) -> np.ndarray:
    """Steps of the weights' signed grids, float32, one for each output: the largest weight is 127 of them.

    Raises:
        ValueError: a weight is not finite.
    """
    if not np.isfinite(weight).all():
        raise ValueError("weights that are not finite")
    others = tuple(i for i in range(weight.ndim) if i != axis)
    peaks = np.abs(weight).max(axis=others).astype(np.float64) / 127
    return np.where(peaks > 0, np.maximum(peaks, _LEAST_STEP), 1).astype(np.float32)


def steps_for(steps: np.ndarray, kind: EngineKind) -> np.ndarray:
    """The steps as a kind of engine has them: TensorRT also in float16."""
    if kind == "cpu":
        return steps
    return np.array([_held_by_float16(float(step)) for step in steps], np.float32)


def rounded(weight: np.ndarray, steps: np.ndarray, axis: int) -> np.ndarray:
    """Weights as the integers of their grids, int8."""
    shape = tuple(-1 if i == axis else 1 for i in range(weight.ndim))
    return np.clip(np.rint(weight / steps.reshape(shape)), -127, 127).astype(np.int8)


def _held_by_float16(step: float) -> np.float32:
    """The step or the next above that float16 holds: the same grid serves an engine whose maps are float16."""
    if not _LEAST_NORMAL_FLOAT16 <= step < _MOST_FLOAT16:
        return np.float32(step)
    low = np.float16(step)
    return np.float32(low if float(low) >= step else np.nextafter(low, np.float16(np.inf)))
