"""Grids by hand, and against ONNX's own QuantizeLinear and DequantizeLinear."""

import math

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from reidkit.calibration import Range
from reidkit.train.fake_quantization import Grid, rounded_weight


def grid_of(engine, low, high, *, learned=False):
    grid = Grid(engine, learned=learned).eval()
    grid.set(Range(low, high))
    return grid


def on(grid, values, rate=0.0):
    return grid(torch.as_tensor(values, dtype=torch.float32), torch.tensor(rate))


def by_onnx(x, step, zero, dtype):
    """What a pair of ONNX's operators gives, by onnx's own evaluator."""
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
         helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [helper.make_tensor("s", TensorProto.FLOAT, [], [step]), helper.make_tensor("z", dtype, [], [zero])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


def test_an_affine_grid_by_hand():
    # 255 steps of 0.5, 0 at the 55th: from -27.5 to 100.
    grid = grid_of("cpu", -27.5, 100.0)
    values = [0.0, 0.24, 0.25, 0.26, 0.75, -0.25, -27.5, -27.8, -99.0, 100.0, 100.2, 1e9]
    expected = [0.0, 0.0, 0.0, 0.5, 1.0, 0.0, -27.5, -27.5, -27.5, 100.0, 100.0, 100.0]
    assert on(grid, values).tolist() == expected  # halves go to the even integer


def test_the_zero_of_an_affine_grid_is_on_it():
    grid = grid_of("cpu", -1.0, 3.1)  # -low / step is 62.19...
    step = np.float32(4.1) / np.float32(255)
    given = grid.range()
    assert given.low == pytest.approx(-62 * step, rel=1e-6)
    assert given.high == pytest.approx(193 * step, rel=1e-6)
    assert -given.low / ((given.high - given.low) / 255) == pytest.approx(62, abs=1e-9)
    assert on(grid, [0.0]).tolist() == [0.0]


def test_a_symmetric_grid_by_hand():
    # 127 steps of 0.5 to either side: -128 is left out.
    grid = grid_of("tensorrt", -10.0, 63.5)
    assert on(grid, [0.25, 0.26, -63.5, -64.0, -99.0, 63.6, 1e9]).tolist() == [0, 0.5, -63.5, -63.5, -63.5, 63.5, 63.5]
    assert grid.range() == Range(-10.0, 63.5)
    assert grid_of("tensorrt", -127.1, 63.5).range() == Range(-127 * (1 + 2**-10), 63.5)  # the next step of float16


def test_a_step_for_tensorrt_is_one_that_float16_holds():
    for high in (1.0, 3.3, 127 * 0.125, 127e-7, 500.0):
        step = on(grid_of("tensorrt", 0.0, high), [1e9]).item() / 127
        wanted = np.float32(high) / np.float32(127)
        if wanted < 2**-14:
            assert step == pytest.approx(wanted, rel=1e-6)
            continue
        assert np.float16(step) == pytest.approx(step, rel=1e-7)
        assert wanted * (1 - 1e-6) <= step <= wanted * (1 + 2**-10)


@pytest.mark.parametrize("engine", ["cpu", "tensorrt"])
def test_grids_are_those_of_onnx(engine):
    rng = np.random.default_rng(0)
    x = (rng.normal(0, 2, 4000)).astype(np.float32)
    if engine == "cpu":
        step, zero, dtype = np.float32(7.5 / 255), 85, TensorProto.UINT8
        grid = grid_of("cpu", -2.5, 5.0)
    else:
        step, zero, dtype = np.float32(0.03125), 0, TensorProto.INT8
        grid = grid_of("tensorrt", -1.0, 127 * 0.03125)
        x = x.clip(-127 * step, None)  # ONNX's int8 has one step more
    assert np.array_equal(on(grid, x).numpy(), by_onnx(x, step, zero, dtype))


def test_a_value_that_was_only_0_has_a_step_of_1():
    assert on(grid_of("cpu", 0.0, 0.0), [0.0, 0.4]).tolist() == [0.0, 0.0]
    assert on(grid_of("tensorrt", 0.0, 0.0), [0.0, 0.4]).tolist() == [0.0, 0.0]
    assert grid_of("cpu", 0.0, 0.0).range() == Range(0.0, 0.0)


def test_weights_have_a_grid_for_each_output():
    weight = torch.tensor([[127.0, 0.5, 0.6, -126.4], [-12.7, 0.05, 0.26, 12.7], [0.0, 0.0, 0.0, 0.0]])
    expected = [[127.0, 0.0, 1.0, -126.0], [-12.7, 0.0, 0.3, 12.7], [0.0, 0.0, 0.0, 0.0]]
    assert torch.allclose(rounded_weight(weight, "cpu"), torch.tensor(expected), atol=1e-6)
    held = rounded_weight(weight, "tensorrt")[1] / 127 * 127
    assert torch.allclose(held, torch.tensor(expected[1]), rtol=2**-10, atol=1e-6)


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_the_gradient_goes_through_and_ends_behind_the_ends():
    grid = grid_of("cpu", -27.5, 100.0)
    x = torch.tensor([0.3, -20.0, 99.9, -40.0, 101.0], requires_grad=True)
    (grid(x, torch.tensor(0.0)) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0, 0.0, 0.0]

    weight = torch.randn(3, 2, 3, 3, requires_grad=True)
    factor = torch.randn(3, 2, 3, 3)
    (rounded_weight(weight, "cpu") * factor).sum().backward()
    assert torch.allclose(weight.grad, factor, rtol=1e-5)


def test_the_gradient_of_a_learned_range_by_hand():
    # Symmetric, step s = high / 127 = 0.5: inside dy/ds = round(x/s) - x/s, at the ends -127 and 127 (Esser et al.).
    grid = grid_of("tensorrt", 0.0, 63.5, learned=True)
    x = torch.tensor([0.3, 1.6, -1.9, 80.0, -80.0])
    weights = torch.tensor([1.0, 10.0, 100.0, 0.5, 0.25])
    (grid(x, torch.tensor(0.0)) * weights).sum().backward()
    by_step = [1 - 0.6, 3 - 3.2, -4 + 3.8, 127, -127]
    # The step is factor * 63.5 / 127; the gradient is divided by the root of values times steps.
    expected = sum(w * g for w, g in zip(weights.tolist(), by_step, strict=True)) * 0.5 / math.sqrt(5 * 255)
    assert grid.factors.grad[1].item() == pytest.approx(expected, rel=1e-4)
    assert grid.factors.grad[0].item() == 0  # the low end is 0 and stays there


def test_a_learned_range_is_its_first_one_times_its_factors_and_follows_nothing():
    grid = grid_of("cpu", -27.5, 100.0, learned=True).train()
    on(grid, [1000.0, -1000.0], rate=0.5)
    assert (grid.low.item(), grid.high.item()) == (-27.5, 100.0)
    with torch.no_grad():
        grid.factors.copy_(torch.tensor([2.0, 0.5]))
    assert [end.item() for end in grid.ends()] == [-55.0, 50.0]
    with torch.no_grad():
        grid.factors.fill_(-1.0)  # whatever a step does, a range neither vanishes nor turns round
    assert grid.range().high > 0


# -- ranges ------------------------------------------------------------------------------------------------------------


def test_a_moving_average_by_hand():
    grid = grid_of("cpu", -1.0, 4.0).train()
    on(grid, [-3.0, 6.0], rate=0.25)
    assert (grid.low.item(), grid.high.item()) == (-1.5, 4.5)
    on(grid, [2.0, 2.5], rate=0.5)  # 0 is always in it
    assert (grid.low.item(), grid.high.item()) == (-0.75, 3.5)
    on(grid, [9.0, 9.0], rate=0.0)
    on(grid.eval(), [9.0, 9.0], rate=0.5)
    assert (grid.low.item(), grid.high.item()) == (-0.75, 3.5)


def test_values_are_rounded_in_the_range_that_has_seen_them():
    grid = grid_of("tensorrt", 0.0, 1.0).train()
    assert on(grid, [127.0, 3.4], rate=1.0).tolist() == [127.0, 3.0]


def test_a_grid_that_measures_rounds_nothing():
    grid = grid_of("cpu", 0.0, 1.0)
    grid.mode = "measures"
    assert on(grid, [0.123, -7.0], rate=1.0).tolist() == pytest.approx([0.123, -7.0])
    assert (grid.low.item(), grid.high.item()) == pytest.approx((-7.0, 0.123))
    grid.mode = "passes"
    on(grid, [99.0], rate=1.0)
    assert grid.high.item() == pytest.approx(0.123)
