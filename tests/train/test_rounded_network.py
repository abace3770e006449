"""A network in eight bits, against ONNX Runtime on the graph that an engine gets."""

import copy
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from quantized_runs import drawn_once, export, rounding_of, with_statistics
from tiny_runs import TINY

from reidkit.architecture import HeadSpec, ModelSpec, ResNetSpec
from reidkit.calibration import Calibration, Range, RoundedLayer
from reidkit.deploy.quantize.calibrate import quantizable_graph
from reidkit.deploy.quantize.emit import quantized_graph
from reidkit.deploy.quantize.placement import PLACEMENT, grid_names, place
from reidkit.errors import ModelError
from reidkit.models.checkpoint import load_deployed
from reidkit.models.model import Preprocess, build_model
from reidkit.train.ema import Average
from reidkit.train.rounded_network import (
    RoundedNetwork,
    float_network,
    follow,
    followed,
    measure_ranges,
    rounded_values,
    trained_ranges,
)
from reidkit.train.traced_network import fold_batch_norms, trace

pytestmark = pytest.mark.usefixtures("narrow_networks", "once")

SIZE = (64, 32)
SPEC = ModelSpec(ResNetSpec(ibn="a"), HeadSpec(pooling="gem"))


@pytest.fixture(scope="module")
def once():
    with drawn_once():
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, narrow_networks):
    return export(tmp_path_factory.mktemp("float"), spec=SPEC, size=SIZE)


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(1).integers(0, 256, (24, *SIZE, 3), np.uint8)


def network_of(bundle):
    model = build_model(SPEC, identities=3).eval()
    model.load_state_dict(load_deployed(bundle).model.state_dict(), strict=False)
    return model


def in_eight_bits(bundle, engine, crops):
    model = RoundedNetwork(network_of(bundle), rounding_of(bundle, engine), SIZE).eval()
    measure_ranges(model, preprocess_of(bundle), [torch.from_numpy(crops)])
    return model


def preprocess_of(bundle):
    return Preprocess(bundle.manifest.input)


def pixels_of(bundle, crops):
    return preprocess_of(bundle)(torch.from_numpy(crops))


def by_onnxruntime(bundle, engine, ranges, crops):
    """The engine's graph, run as it stands: every pair of Q and DQ is computed, and nothing is fused."""
    graph = quantizable_graph(bundle)
    placement, names = place(graph, engine), grid_names(graph)
    table = Calibration(
        graph="",
        placement=PLACEMENT,
        method="qat",
        ranges={value: ranges[name] for value, name in names.items() if name in ranges},
        scales={layer.name: tuple(steps_of(graph, layer, engine)) for layer in placement.layers},
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(quantized_graph(graph, placement, table).SerializeToString(), options)
    return session.run(None, {session.get_inputs()[0].name: crops})[0]


def steps_of(graph, layer, engine):
    """The largest weight of each output is 127 steps; for TensorRT a step is one that float16 holds, or the next."""
    (weight,) = (numpy_helper.to_array(item) for item in graph.graph.initializer if item.name == layer.weight)
    steps = np.abs(weight.reshape(len(weight), -1)).max(axis=1) / np.float32(127)
    if engine == "tensorrt":
        nearest = steps.astype(np.float16)
        above = np.nextafter(nearest, np.float16(np.inf)).astype(np.float32)
        steps = np.where(nearest.astype(np.float32) < steps, above, nearest.astype(np.float32))
    return steps.tolist()


def distance(a, b):
    """Of embeddings, in lengths of the second."""
    return np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)


@torch.no_grad()
@pytest.mark.parametrize("engine", ["cpu", "tensorrt"])
def test_it_computes_what_the_engine_computes(bundle, crops, engine):
    model = in_eight_bits(bundle, engine, crops)
    ours = model(pixels_of(bundle, crops)).numpy()
    theirs = by_onnxruntime(bundle, engine, trained_ranges(model), crops)
    floats = network_of(bundle)(pixels_of(bundle, crops)).numpy()
    # A sum in another order falls on the other side of a step now and then, and what follows carries that on: such a
    # crop may be as far off as eight bits are from floats. Where it does not happen, embeddings agree to float32's
    # last digits. So some of them agree wholly, or none: that is a rounding too many, too few or in another place.
    apart, rounding = distance(ours, theirs), distance(theirs, floats)
    assert rounding.min() > 2e-3
    assert (apart < 1e-6).sum() >= 3
    assert (apart < 4 * rounding).all()

    model.grids["backbone.layer3.0.conv2:input"].mode = "passes"
    assert distance(model(pixels_of(bundle, crops)).numpy(), theirs).min() > 1e-4


@torch.no_grad()
def test_folding_changes_nothing_and_leaves_an_ordinary_network(bundle, crops):
    before = network_of(bundle)
    x = pixels_of(bundle, crops)
    expected = before(x)
    model = RoundedNetwork(before, rounding_of(bundle, "cpu"), SIZE).eval()
    kept = float_network(model)
    assert kept is before
    assert torch.allclose(kept(x), expected, rtol=1e-5, atol=1e-5)
    # Folded once more in float64, as an export does, weights are the same to the bit.
    for norm_name, layer in (
        ("bn1", "conv1"),
        ("layer1.0.bn1.BN", "layer1.0.conv1"),
        ("layer4.0.bn2", "layer4.0.conv2"),
    ):
        norm, weight = kept.backbone.get_submodule(norm_name), kept.backbone.get_submodule(layer).weight
        factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        assert not norm.running_mean.any()
        assert norm.bias.any()
        assert torch.equal(
            (weight[-len(factor) :].double() * factor.reshape(-1, 1, 1, 1)).float(), weight[-len(factor) :]
        )
    for grid in model.grids.values():
        grid.mode = "passes"
    assert distance(model(x).numpy(), expected.numpy()).max() > 1e-4  # weights are rounded still


@torch.no_grad()
def test_grids_are_shared_where_the_engine_shares_them(bundle):
    model = RoundedNetwork(network_of(bundle), rounding_of(bundle, "tensorrt"), SIZE)
    calls = [node for node in model.trunk.graph.nodes if node.op == "call_module"]
    assert len(calls) == len(model.grids) == len({node.target for node in calls})
    # The block's input goes through one grid to its convolution, its shortcut's convolution, or past both to the sum.
    by_key = {node.target: len(node.users) for node in calls}
    assert by_key["grids.backbone/layer2/0/downsample/0:input"] == 2
    assert by_key["grids.backbone/layer1/0/conv1:input"] == 2
    assert by_key["grids.backbone/layer2/0/downsample/0:output"] == 1


@torch.no_grad()
def test_an_average_of_it_is_one_of_its_own(bundle, crops):
    model = in_eight_bits(bundle, "cpu", crops)
    average = Average(model, 0.9)
    x = pixels_of(bundle, crops)
    assert torch.equal(average.module(x), model(x))
    for end in followed(model):
        end.mul_(0.5)
    network = float_network(model)
    network.get_parameter("backbone.layer4.0.conv2.weight").mul_(1.5)
    assert not torch.equal(average.module(x), model(x))
    average.update()
    high = average.module.grids["backbone.conv1:output"].high
    assert high.item() == pytest.approx(model.grids["backbone.conv1:output"].high.item() * (0.1 * 2 + 0.9), rel=1e-5)
    fixed = copy.deepcopy(network.get_parameter("backbone.bn1.weight"))
    assert not fixed.requires_grad
    assert torch.equal(fixed, torch.ones_like(fixed))


def test_what_learns_and_what_stays(bundle, crops):
    model = RoundedNetwork(network_of(bundle), rounding_of(bundle, "cpu"), SIZE, learned=True)
    measure_ranges(model, preprocess_of(bundle), [torch.from_numpy(crops)])
    model.train()
    follow(model, 0.5)
    assert followed(model) == []  # processes have nothing to agree on
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    outputs = model.training_outputs(pixels_of(bundle, crops))
    assert [(output.whole, tuple(output.pooled.shape)) for output in outputs] == [(True, (24, 16))]
    (outputs[0].embedding ** 2).sum().backward()
    without = {name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None}
    assert without == {"network.heads.weight"}  # the classifier, which this loss does not know
    assert {name for name, weight in model.named_parameters() if not weight.requires_grad} >= {
        "network.backbone.bn1.weight", "network.backbone.layer1.0.bn1.BN.weight",
    }  # fmt: skip
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_first_ranges_are_means_of_each_batch(bundle, crops):
    model = RoundedNetwork(network_of(bundle), rounding_of(bundle, "cpu"), SIZE)
    given = model.grids["backbone.conv1:output"]
    given.set(Range(-1.0, 2.0))
    batches = torch.from_numpy(crops).split(12)
    measure_ranges(model, preprocess_of(bundle), batches, but=["backbone.conv1:output"])
    assert (given.low.item(), given.high.item()) == (-1.0, 2.0)
    extremes = [preprocess_of(bundle)(batch).aminmax() for batch in batches]
    taken = model.grids["backbone.conv1:input"]
    assert taken.low.item() == pytest.approx(np.mean([low.item() for low, _ in extremes]), rel=1e-5)
    assert taken.high.item() == pytest.approx(np.mean([high.item() for _, high in extremes]), rel=1e-5)
    assert model.training
    assert all(grid.mode == "rounds" for grid in model.grids.values())


# -- another network ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def traced(bundle):
    network = network_of(bundle)
    found = trace(network, SIZE)
    fold_batch_norms(network, found)
    return found


def test_a_layer_that_the_network_does_not_have(bundle, traced):
    rounding = rounding_of(bundle, "cpu")
    other = RoundedLayer("backbone.layer9.conv1", "backbone.conv1:output", None)
    text = r"not that of the network[\s\S]*got: the network has no layer backbone\.layer9\.conv1\n[\s\S]*to do: export"
    with pytest.raises(ModelError, match=text):
        rounded_values(traced, replace(rounding, layers=(*rounding.layers, other)))


def test_a_layer_that_the_graph_does_not_round(bundle, traced):
    rounding = rounding_of(bundle, "cpu")
    left = tuple(layer for layer in rounding.layers if layer.name != "backbone.layer4.0.conv2")
    with pytest.raises(ModelError, match=r"got: the graph does not round backbone\.layer4\.0\.conv2\n"):
        rounded_values(traced, replace(rounding, layers=left))
    assert rounded_values(traced, replace(rounding, layers=left, floats=("backbone.layer4.0.conv2",)))


def test_a_grid_that_nobody_reads(bundle, traced):
    rounding = rounding_of(bundle, "tensorrt")
    first = replace(rounding.layers[0], output="backbone.conv1:output")
    with pytest.raises(ModelError, match=r"got: nobody reads backbone\.conv1:output rounded"):
        rounded_values(traced, replace(rounding, layers=(first, *rounding.layers[1:])))


# -- other networks ----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    "spec",
    [
        replace(TINY, branches="mgn"),
        ModelSpec(ResNetSpec(preactivation=True), HeadSpec(pooling="average")),
        ModelSpec(ResNetSpec(ibn="b", max_pool="pad"), HeadSpec(pooling="average", embedding_dim=8)),
    ],
    ids=["mgn", "pre-activation", "ibn-b"],
)
def test_folding_other_networks_changes_nothing(spec):
    model = with_statistics(spec, identities=3)
    x = torch.randn(2, 3, 96, 32)
    expected = model(x)
    traced = trace(model, (96, 32))
    fold_batch_norms(model, traced)
    assert torch.allclose(model(x), expected, rtol=1e-5, atol=1e-5)
    assert not traced.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    maps = traced.module(*(tensors[name] for name in traced.names.values()), x)
    heads = [model.get_submodule(name) for name in traced.heads]
    embedding = torch.cat([head(map_)[1] for head, map_ in zip(heads, maps, strict=True)], dim=1)
    assert torch.allclose(embedding, expected, rtol=1e-5, atol=1e-5)
