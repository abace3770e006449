"""TensorRT's own table of steps, read back by hand."""

import struct

import numpy as np

from reidkit.calibration import Calibration, Range
from reidkit.deploy.quantize.tensorrt_cache import calibration_cache


def read(data):
    header, *lines = data.decode("ascii").removesuffix("\n").split("\n")
    pairs = [line.rpartition(": ") for line in lines]
    return header, {name: struct.unpack(">f", bytes.fromhex(word))[0] for name, _, word in pairs}


def table(**ranges):
    return Calibration("0" * 64, 1, "minmax", ranges, {"l": (1.0,)})


def test_a_step_is_the_peak_by_127_in_hexadecimal():
    data = calibration_cache(table(x=Range(-1.0, 127.0), **{"a/b:0": Range(-2.54, 1.0)}), {"x", "a/b:0"})
    assert data == b"TRT-8600-EntropyCalibration2\nx: 3f800000\na/b:0: 3ca3d70a\n"
    header, steps = read(data)
    assert header == "TRT-8600-EntropyCalibration2"
    assert steps == {"x": 1.0, "a/b:0": float(np.float32(0.02))}


def test_what_has_no_step_is_left_out():
    some = table(w=Range(-1.0, 0.0), x=Range(0.0, 0.0), y=Range(0.0, 1e-45), z=Range(-1.0, 0.0))
    assert read(calibration_cache(some, {"x", "y", "z"}))[1].keys() == {"z"}
