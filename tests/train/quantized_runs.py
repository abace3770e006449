"""Tiny networks with a bundle of each, for tests that train in eight bits. To be built within `narrow_networks`."""

import copy
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import TINY
from torch import fx

from reidkit.bundle import Golden, write_bundle
from reidkit.calibration import RoundedLayer
from reidkit.deploy.quantize.calibrate import quantizable_graph
from reidkit.deploy.quantize.placement import place, rounded_layers
from reidkit.export.torch_export import export_model
from reidkit.manifest import CheckpointFacts, Embedding, Manifest, Provenance
from reidkit.models.checkpoint import deployed_weights
from reidkit.models.model import build_model
from reidkit.train.quantization import Rounding
from reidkit.types import InputSpec


def with_statistics(spec, *, identities=None):
    """A network whose normalisations all have something to do."""
    torch.manual_seed(0)
    model = build_model(spec, identities=identities).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(std=0.2)
            elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1 and name.endswith("bias"):
                tensor.normal_(std=0.2)
    return model


def export(folder: Path, *, spec=TINY, size=(32, 16), name="float"):
    model = with_statistics(spec)
    facts = CheckpointFacts(spec, InputSpec(*size), "person", Provenance())
    return export_model(model, facts, folder / f"{name}.reid", name=name)


@contextmanager
def drawn_once():
    """Within it every network is drawn once, and then copied: drawing takes longer than the run that it is for."""
    draw, drawn = torch.export.export, {}

    def kept(trunk, crops, **options):
        if not hasattr(trunk, "network"):  # an export to ONNX
            return draw(trunk, crops, **options)
        key = (trunk.network.spec, crops[0].shape)
        if key not in drawn:
            drawn[key] = draw(trunk, crops, **options)
        trunk(*crops)  # which notes the heads
        module = drawn[key].graph_module
        module = fx.GraphModule(module, copy.deepcopy(module.graph))
        return SimpleNamespace(graph_module=module, graph=module.graph, graph_signature=drawn[key].graph_signature)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "export", kept)
        yield


def unexported(folder: Path, *, spec=TINY, size=(32, 16)):
    """A bundle whose graph nobody reads: an export takes longer than a run."""
    model = with_statistics(spec)
    crops = np.zeros((1, *size, 3), np.uint8)
    with torch.no_grad():
        dim = model(torch.zeros(1, 3, *size)).shape[1]
    facts = CheckpointFacts(spec, InputSpec(*size), "person", Provenance())
    return write_bundle(
        folder / "float.reid",
        Manifest("float", "person", InputSpec(*size), Embedding(dim), architecture=spec),
        model=b"no graph",
        golden=Golden(crops, np.zeros((1, dim), np.float32)),
        weights=deployed_weights(model, facts),
    )


def tiny_rounding(**others):
    """Where TensorRT rounds `TINY`, written by hand."""
    layers = [RoundedLayer("backbone.conv1", "backbone.conv1:input", None)]
    for number in (1, 2, 3, 4):
        block = f"backbone.layer{number}.0"
        first, middle = f"{block}.conv1:input", f"{block}.conv2:input"
        result = None
        if number in (2, 3):
            first = f"{block}.downsample.0:input"
            layers.append(RoundedLayer(f"{block}.downsample.0", first, f"{block}.downsample.0:output"))
        if number == 4:  # without IBN the ReLU stands right behind the first convolution
            middle = result = f"{block}.conv1:output"
        layers += [RoundedLayer(f"{block}.conv1", first, result), RoundedLayer(f"{block}.conv2", middle, None)]
    return Rounding("tensorrt", tuple(layers), **others)


def rounding_of(bundle, engine):
    graph = quantizable_graph(bundle)
    return Rounding(engine, rounded_layers(graph, place(graph, engine)))
