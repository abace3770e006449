"""The table as TensorRT 8 and 10 keep their own: for calibrators that only have to hand it over."""

import struct
from collections.abc import Collection

import numpy as np

from reidkit.calibration import Calibration

HEADER = "TRT-8600-EntropyCalibration2"
"""Of the calibrator that reads such a file: `IInt8EntropyCalibrator2`. Other versions read it, too, and say so."""


def calibration_cache(table: Calibration, values: Collection[str]) -> bytes:
    """Values with their steps, `max(-low, high) / 127` as a float32 in hexadecimal, most significant byte first.

    A value that is not in the table stays float: TensorRT says so of each when it builds. The names are those of the
    bundle's graph with batch normalisations folded, which are those of `model.int8-tensorrt.onnx` too.

    Args:
        table: of the ranges.
        values: that the graph for TensorRT rounds; others, such as those of layers in float, are left out.
    """
    lines = [HEADER]
    for name, held in table.ranges.items():
        step = np.float32(max(-held.low, held.high) / 127)
        if name in values and step > 0:
            lines.append(f"{name}: {struct.pack('>f', step).hex()}")
    return ("\n".join(lines) + "\n").encode()
