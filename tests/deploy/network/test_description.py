"""Which weights a description takes and what it counts, held against the networks that PyTorch builds."""

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from known_networks import CASES
from reidkit.architecture import CATALOGUE, HeadSpec, ModelSpec, ResNetSpec, TimmSpec
from reidkit.deploy.network.description import describable, fit_weights, write_network
from reidkit.deploy.network.layers import Layers
from reidkit.deploy.network.shapes import ShapeLayers
from reidkit.errors import InputError, ModelError
from reidkit.models.cost import model_cost
from reidkit.models.model import build_model
from reidkit.types import InputSpec

OTHERS = {
    "resnet101-ibn-b": (CATALOGUE["resnet101-ibn-b"], InputSpec(64, 32)),
    "agw-r101": (CATALOGUE["agw-r101"], InputSpec(64, 32)),
}


def ones(spec):
    """Every tensor of PyTorch's network in name, shape and type."""
    with torch.device("meta"), _Unfilled():
        model = build_model(spec)
    kinds = {torch.float32: np.float32, torch.int64: np.int64}
    return {name: np.ones(tuple(tensor.shape), kinds[tensor.dtype]) for name, tensor in model.state_dict().items()}


class _Unfilled(TorchFunctionMode):
    """Drawing random numbers for tensors that hold none takes PyTorch longer than all the rest."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0] if func in (torch.Tensor.normal_, torch.Tensor.uniform_) else func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES | OTHERS)
def test_names_shapes_and_cost_are_those_of_pytorchs_network(case):
    spec, input_ = (CASES | OTHERS)[case]
    tensors = ones(spec)
    weights, cost = fit_weights(spec, input_, tensors)
    deployed = weights.deployed()
    assert {n: (a.shape, a.dtype) for n, a in deployed.items()} == {n: (a.shape, a.dtype) for n, a in tensors.items()}
    assert cost == model_cost(spec, (input_.height, input_.width))


def test_the_shapes_are_a_writer():
    assert isinstance(ShapeLayers(), Layers)


def test_what_has_no_description():
    spec = ModelSpec(TimmSpec(name="convnext_tiny"), HeadSpec(pooling="own"))
    assert not describable(spec)
    assert not describable(None)
    assert describable(ModelSpec())
    with pytest.raises(ModelError, match=r"There is no description of timm's convnext_tiny; .*\n.*MGN or OSNet"):
        write_network(ShapeLayers(), spec, InputSpec(64, 32), {})


@pytest.mark.parametrize(
    ("spec", "input_", "message"),
    [
        (ModelSpec(), InputSpec(2, 2), "The crops are too small for this network"),
        (ModelSpec(ResNetSpec(), HeadSpec(), "mgn"), InputSpec(32, 32), "The crops are too low for MGN"),
    ],
)
def test_crops_that_are_too_small(spec, input_, message):
    with pytest.raises(InputError, match=message):
        write_network(ShapeLayers(), spec, input_, ones(spec))


def test_nothing_is_written_where_weights_are_missing():
    written = ShapeLayers()
    tensors = ones(ModelSpec())
    del tensors["backbone.layer3.0.conv1.weight"]
    with pytest.raises(
        ModelError, match=r"The weights of x\.wts do not fit.*\n  got: 1 missing: .*layer3\.0\.conv1\.weight"
    ):
        write_network(written, ModelSpec(), InputSpec(64, 32), tensors, source="x.wts")
    assert written.multiply_adds == 0
