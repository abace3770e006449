"""Grids by hand and by their promises: 0 is on them, every number of the range is at most half a step away."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidkit.calibration import Range
from reidkit.deploy.quantize.grids import grid_of, rounded, steps_for, weight_steps

ENDS = st.one_of(st.just(0.0), st.floats(0, 2.0**127, width=32), st.floats(0, 100, width=32), st.floats(0, 2.0**-100))
RANGES = st.builds(lambda low, high: Range(-low, high), ENDS, ENDS)
LIMITS = {np.uint8: (0, 255), np.int8: (-127, 127)}


def on_grid(values, grid):
    least, most = LIMITS[grid.dtype]
    step = np.float64(grid.step)
    return (np.clip(np.rint(np.asarray(values, np.float64) / step) + grid.zero, least, most) - grid.zero) * step


@settings(max_examples=200, deadline=None)
@given(RANGES, st.sampled_from(["cpu", "tensorrt"]), st.floats(0, 1))
def test_every_number_of_the_range_is_near_the_grid_and_0_is_on_it(values, kind, share):
    grid = grid_of(values, kind)
    least, most = LIMITS[grid.dtype]
    assert grid.dtype == (np.uint8 if kind == "cpu" else np.int8)
    assert grid.step.dtype == np.float32
    assert 2.0**-60 <= grid.step < np.inf
    assert isinstance(grid.zero, int)
    assert least <= grid.zero <= most
    assert on_grid(0.0, grid) == 0
    number = values.low + share * (values.high - values.low)
    if number not in (np.inf, -np.inf):
        # Half a step for rounding; at an end half a step more, by which the whole grid was moved to put 0 on it.
        assert abs(on_grid(number, grid) - number) <= grid.step * (1.0001 if kind == "cpu" else 0.5001)


@settings(max_examples=200, deadline=None)
@given(RANGES)
def test_tensorrts_grids_are_symmetric_and_held_by_float16(values):
    grid = grid_of(values, "tensorrt")
    peak = max(-values.low, values.high)
    assert grid.zero == 0
    if peak:
        assert np.float64(grid.step) >= np.float32(peak / 127) * (1 - 1e-7)
    if 127 * 2.0**-14 <= peak < 127 * 65504:
        assert np.float32(np.float16(grid.step)) == grid.step
        assert np.float64(grid.step) <= peak / 127 * (1 + 2.0**-10)


@pytest.mark.parametrize(
    ("low", "high", "step", "zero"),
    [
        (0.0, 255.0, 1.0, 0),
        (-1.0, 1.55, 0.01, 100),
        (-255.0, 0.0, 1.0, 255),
        (-0.4, 254.6, 1.0, 0),
        (-0.6, 254.4, 1.0, 1),
        (0.0, 0.0, 1.0, 0),
        (0.0, 1e-44, 2.0**-60, 0),
    ],
)
def test_processors_grids_by_hand(low, high, step, zero):
    assert grid_of(Range(low, high), "cpu") == (np.float32(step), zero, np.uint8)


@pytest.mark.parametrize(
    ("low", "high", "step"),
    [
        (0.0, 127.0, 1.0),
        (-254.0, 3.0, 2.0),
        (0.0, 127 * (1 + 2.0**-11), 1 + 2.0**-10),  # between two that float16 holds
        (0.0, 127 * 2.0**-20, 2.0**-20),  # float16 has such numbers, but with few bits
        (0.0, 127 * 1e5, 1e5),
        (0.0, 0.0, 1.0),
        (-1e-44, 0.0, 2.0**-60),
    ],
)
def test_tensorrts_grids_by_hand(low, high, step):
    assert grid_of(Range(low, high), "tensorrt") == (np.float32(step), 0, np.int8)


def test_steps_of_weights_are_of_each_output():
    weight = np.array([[[2.54, -1.0]], [[0.0, 0.0]], [[-0.127, 0.02]]], np.float32)
    steps = weight_steps(weight, 0)
    assert steps.dtype == np.float32
    np.testing.assert_allclose(steps, [0.02, 1.0, 0.001], rtol=1e-6)
    assert rounded(weight, steps, 0).tolist() == [[[127, -50]], [[0, 0]], [[-127, 20]]]
    np.testing.assert_allclose(weight_steps(weight[:, 0], 1), [0.02, 1 / 127], rtol=1e-6)
    assert rounded(weight[:, 0], np.array([0.02, 0.01], np.float32), 1).tolist() == [[127, -100], [0, 0], [-6, 2]]


def test_weights_that_are_next_to_nothing_have_a_step_whose_product_is_a_number():
    steps = weight_steps(np.array([[1e-40], [1e-17]], np.float32), 0)
    assert steps.tolist() == [2.0**-60, 2.0**-60]
    assert np.float32(2.0**-60) * steps[0] > 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=6), st.sampled_from(["cpu", "tensorrt"]))
def test_no_weight_is_cut(values, kind):
    weight = np.array([values], np.float32)
    steps = steps_for(weight_steps(weight, 0), kind)
    integers = rounded(weight, steps, 0)
    assert np.abs(integers.astype(int)).max() <= 127
    assert np.abs(integers * steps.astype(np.float64) - weight).max() <= steps[0] * 0.5001
    if kind == "tensorrt" and 2.0**-14 <= steps[0] < 65504:
        assert np.float32(np.float16(steps[0])) == steps[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_have_no_steps(bad):
    with pytest.raises(ValueError, match="weights that are not finite"):
        weight_steps(np.array([[1, bad]], np.float32), 0)
