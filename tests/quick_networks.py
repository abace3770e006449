"""Where neither the width of a network nor PyTorch's exporter is what a test is about: both cost most of its time."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from reidkit import architecture
from reidkit.deploy.network import resnet as described
from reidkit.deploy.network.onnx_layers import onnx_network
from reidkit.export import torch_export
from reidkit.models import resnet
from reidkit.models.model import DeployedModel
from reidkit.types import InputSpec

WIDTHS = (16, 32, 64, 128)
"""A quarter of a ResNet's."""


@contextmanager
def narrow_resnets() -> Iterator[None]:
    """Within it ResNets and MGN have a quarter of their channels, wherever they are built or written."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (architecture, resnet, described):
            patch.setattr(module, "STAGE_WIDTHS", WIDTHS)
        patch.setattr(resnet, "_STEM_WIDTH", WIDTHS[0])
        patch.setattr(described, "STEM_WIDTH", WIDTHS[0])
        yield


@contextmanager
def graphs_by_layers() -> Iterator[None]:
    """Within it an export writes its graph layer by layer, which takes no time, in place of PyTorch's exporter."""

    def write(model: DeployedModel, spec: InputSpec) -> bytes:
        tensors = {name: tensor.numpy() for name, tensor in model.model.state_dict().items()}
        return onnx_network(model.model.spec, spec, tensors, source="the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_export, "onnx_graph", write)
        yield
