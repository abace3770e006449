"""What float16 and bfloat16 hold, by hand."""

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from reidkit.deploy.low_types import converted
from reidkit.deploy.network.low_numbers import is_held, rounded


@pytest.mark.parametrize(
    ("values", "half", "brain"),
    [
        ([0.0, -0.0], True, True),
        ([65504.0], True, True),
        ([65520.0], False, True),  # the first that rounds to infinity
        ([3.38e38], False, True),
        ([np.finfo(np.float32).max], False, False),
        ([np.inf, -np.inf, 1.0], True, True),
        ([1e-6], False, True),  # 17 steps of 2 ** -24, less a fifth of one
        ([2.0**-24], True, True),
        ([2.0**-26], False, True),
        ([1.0, 2.0**-26], True, True),
        ([], True, True),
    ],
)
def test_what_the_low_types_hold(values, half, brain):
    assert is_held(np.array(values, np.float32), "float16") is half
    assert is_held(np.array(values, np.float32), "bfloat16") is brain


def test_single_numbers_have_no_axes():
    assert is_held(np.array(3.0, np.float32), "bfloat16")
    assert not is_held(np.array(1e5, np.float32), "float16")


def test_rounding_goes_to_the_nearest_and_ties_to_even():
    step = np.float32(2.0**-7)
    values = np.array([1 + step / 4, 1 + step / 2, 1 + step * 3 / 2, -1 - step * 3 / 4], np.float32)
    np.testing.assert_array_equal(rounded(values, "bfloat16"), np.array([1, 1, 1 + 2 * step, -1 - step], np.float32))
    np.testing.assert_array_equal(rounded(np.array([2049.0, 1e6], np.float32), "float16"), [2048, np.inf])


def test_a_tensor_keeps_its_shape():
    tensor = numpy_helper.from_array(np.array([[1.0, -2.5]], np.float32), "w")
    half, brain = converted(tensor, "float16", "h"), converted(tensor, "bfloat16", "b")
    assert (half.name, half.data_type, list(half.dims)) == ("h", TensorProto.FLOAT16, [1, 2])
    np.testing.assert_array_equal(numpy_helper.to_array(half), np.array([[1, -2.5]], np.float16))
    assert (brain.name, brain.data_type, list(brain.dims)) == ("b", TensorProto.BFLOAT16, [1, 2])
    assert brain.raw_data == bytes([0x80, 0x3F, 0x20, 0xC0])
