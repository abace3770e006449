"""Weights by name: taken in their shape, folded by hand values, and all accounted for."""

import math

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from reidkit.deploy.network.weights import Weights, bfloat16_bits, read_tensors
from reidkit.errors import ModelError
from reidkit.wts import write_wts


def norm(**changes):
    """A batch normalisation of two channels, as PyTorch writes one."""
    values = {
        "weight": [2.0, 3.0],
        "bias": [0.5, -1.0],
        "running_mean": [1.0, 2.0],
        "running_var": [4.0 - 1e-5, 0.25 - 1e-5],
        **changes,
    }
    return {f"bn.{name}": np.array(value, np.float32) for name, value in values.items()}


def taken(tensors):
    weights = Weights(tensors, source="x.wts")
    weights.batch_norm("bn", 2)
    return weights


def test_a_batch_normalisation_is_a_factor_and_an_offset():
    factor, offset = Weights(norm(), source="x").batch_norm("bn", 2)
    np.testing.assert_allclose(factor, [1.0, 6.0], rtol=1e-6)  # 2 / sqrt(4), 3 / sqrt(0.25)
    np.testing.assert_allclose(offset, [-0.5, -13.0], rtol=1e-6)  # 0.5 - 1 * 1, -1 - 2 * 6


def test_flat_values_take_the_shape_that_is_wanted():
    weights = Weights({"w": np.arange(8, dtype=np.float32)}, source="x.wts")
    np.testing.assert_array_equal(weights.take("w", 2, 1, 2, 2)[1, 0], [[4, 5], [6, 7]])
    weights.check()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, r"4 missing: bn\.bias, bn\.running_mean, bn\.running_var, bn\.weight"),
        (norm() | {"odd": np.zeros(1, np.float32)}, "1 unexpected: odd"),
        (norm(bias=[1.0]), r"1 of another shape: bn\.bias; bn\.bias is \(1,\), not \(2,\)"),
        (norm(num_batches_tracked=[1, 2]), r"bn\.num_batches_tracked is \(2,\), not \(\)"),
        (norm(running_var=[1.0, -1.0]), r"holds values that no network can have\n  got: .*in bn\.running_var"),
        (norm(weight=[1.0, math.nan]), r"holds values that no network can have\n  got: .*in bn\.weight"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_weights_that_do_not_fit_are_refused_by_name(tensors, message):
    with pytest.raises(ModelError, match=message) as error:
        taken(tensors).check()
    assert "x.wts" in str(error.value)


def test_what_only_training_needs_may_be_there():
    idle = {"heads.weight", "heads.classifier.weight", "b31_head.weight", "pixel_mean", "pixel_std"}
    weights = taken(norm(num_batches_tracked=7) | {name: np.ones(3, np.float32) for name in idle})
    weights.check()
    deployed = weights.deployed()
    assert set(deployed) == set(norm(num_batches_tracked=7))
    assert weights.parameters == 4


@pytest.mark.parametrize(
    ("counter", "count"), [({}, 0), ({"num_batches_tracked": 7}, 7), ({"num_batches_tracked": [7]}, 7)]
)
def test_a_counter_goes_into_the_bundle_as_pytorch_wants_it(counter, count):
    got = taken(norm(**counter)).deployed()["bn.num_batches_tracked"]
    assert (got.shape, got.dtype, got.item()) == ((), np.int64, count)


@pytest.mark.parametrize("p", [0.0, -1.0, math.inf])
def test_an_exponent_must_be_above_zero(p):
    weights = Weights({"heads.pool_layer.p": np.array([p], np.float32)}, source="x.wts")
    assert weights.exponent("heads.pool_layer.p") == p
    with pytest.raises(ModelError, match=r"out of range in heads\.pool_layer\.p\n  expected: .*exponents above 0"):
        weights.check()


def test_bfloat16_is_what_pytorch_rounds_to():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    values[:3] = [1 + 2**-8, 1 + 3 * 2**-8, 0]
    got = torch.from_numpy(bfloat16_bits(values).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(got, torch.from_numpy(values).bfloat16())


def test_files_are_read_by_their_suffix(tmp_path):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    save_file(tensors, tmp_path / "x.safetensors")
    write_wts(tmp_path / "x.wts", tensors)
    for name in ("x.safetensors", "x.wts"):
        np.testing.assert_array_equal(read_tensors(tmp_path / name)["a"], tensors["a"])


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ModelError, match=r"cut\.safetensors cannot be read as weights\n  got: .*header"):
        read_tensors(tmp_path / "cut.safetensors")
    with pytest.raises(ModelError, match=r"none\.safetensors cannot be read as weights\n  got: No such file"):
        read_tensors(tmp_path / "none.safetensors")
    save_torch_file({"a": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "b.safetensors")
    with pytest.raises(ModelError, match=r"b\.safetensors has values of a type that NumPy does not know"):
        read_tensors(tmp_path / "b.safetensors")
