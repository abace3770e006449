"""Weights out of ONNX files that exporters have renamed and folded, and files that are something else."""

import contextlib
import io
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from reidkit.architecture import HeadSpec, OSNetSpec, ResNetSpec
from reidkit.checkpoints.onnx_weights import weights_from_onnx
from reidkit.errors import ModelError
from reidkit.models.head import Head
from reidkit.models.osnet import OSNet
from reidkit.models.resnet import ResNet

SIZE = (64, 32)
OSNET_HEAD = HeadSpec(pooling="average", embedding_dim=512, embedding_bias=True, relu=True)


class Network(nn.Module):
    def __init__(self, trunk, head, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = OSNet(trunk) if isinstance(trunk, OSNetSpec) else ResNet(trunk)
        self.heads = Head(head, self.backbone.dim, None)
        for name, tensor in self.state_dict().items():
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "running_mean")):
                tensor.normal_(std=0.3)
        self.eval()

    def forward(self, x):
        return self.heads(self.backbone(x))[1]


def osnet(variant="plain", seed=0, head=OSNET_HEAD):
    return Network(OSNetSpec(width=0.25, variant=variant), head, seed)


def resnet18(seed=0, **options):
    return Network(ResNetSpec(depth=18, **options), HeadSpec(pooling="average"), seed)


def export(model, path, *, fold):
    """PyTorch's older exporter, as most files in the world were made: evaluation mode folds, training mode does not."""
    mode = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, *SIZE),),
            str(path),
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
            training=mode,
            do_constant_folding=fold,
            opset_version=17,
            dynamo=False,
        )
    return path


def rewrite(source, target, change):
    proto = onnx.load(str(source))
    change(proto.graph)
    onnx.save(proto, str(target))
    return target


def anonymise(graph):
    """Names that say nothing, and weights in another order in the file."""
    names = {tensor.name: f"w{number}" for number, tensor in enumerate(graph.initializer)}
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for number, node in enumerate(graph.node):
        node.name = f"n{number}"
        node.input[:] = [names.get(name, name) for name in node.input]
    tensors = sorted(graph.initializer, key=lambda tensor: tensor.name)
    del graph.initializer[:]
    graph.initializer.extend(tensors)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    return {
        "osnet": export(osnet(), folder / "osnet.onnx", fold=True),
        "resnet": export(resnet18(ibn="a"), folder / "resnet.onnx", fold=True),
        "resnet kept": export(resnet18(ibn="a"), folder / "resnet_kept.onnx", fold=False),
    }


def operators(path):
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def assert_same_function(source, model, weights):
    model.load_state_dict(weights)
    x = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, got = source(x), model(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_weights_whose_names_survived_are_bit_equal(files):
    weights = weights_from_onnx(files["resnet kept"], resnet18(1, ibn="a"), SIZE)
    expected = resnet18(ibn="a").state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_weights_without_names_are_bit_equal_where_nothing_was_folded(files, tmp_path):
    path = rewrite(files["resnet kept"], tmp_path / "anonymous.onnx", anonymise)
    weights = weights_from_onnx(path, resnet18(1, ibn="a"), SIZE)
    for name, tensor in resnet18(ibn="a").state_dict().items():
        assert torch.equal(weights[name], tensor), name


@pytest.mark.parametrize(
    ("file", "build"), [("osnet", osnet), ("resnet", lambda seed=0: resnet18(seed, ibn="a"))], ids=["osnet", "resnet"]
)
def test_folded_and_anonymous_files_give_the_same_function(files, tmp_path, file, build):
    path = rewrite(files[file], tmp_path / "anonymous.onnx", anonymise)
    normalisations = sum(isinstance(module, nn.BatchNorm2d) for module in build().modules())
    assert operators(path).count("BatchNormalization") < normalisations / 2
    assert_same_function(build(), build(seed=1), weights_from_onnx(path, build(seed=1), SIZE))


def test_a_folded_normalisation_adds_its_bias_and_nothing_else(files):
    weights = weights_from_onnx(files["osnet"], osnet(seed=1), SIZE)
    original = osnet().state_dict()
    name, eps = "backbone.conv5", 1e-5
    scale = original[f"{name}.bn.weight"] / torch.sqrt(original[f"{name}.bn.running_var"] + eps)
    folded = original[f"{name}.conv.weight"] * scale[:, None, None, None]
    torch.testing.assert_close(weights[f"{name}.conv.weight"], folded)
    bias = original[f"{name}.bn.bias"] - original[f"{name}.bn.running_mean"] * scale
    torch.testing.assert_close(weights[f"{name}.bn.bias"], bias)
    assert weights[f"{name}.bn.weight"].eq(1).all()
    assert weights[f"{name}.bn.running_mean"].eq(0).all()
    assert torch.sqrt(weights[f"{name}.bn.running_var"] + eps).eq(1).all()


def test_layers_may_run_in_another_order(files, tmp_path):
    """torchvision runs a block's shortcut after its convolutions, others before: what feeds what is the same."""

    def shortcuts_last(graph):
        nodes, placed = list(graph.node), set()
        known = {value.name for value in (*graph.initializer, *graph.input)} | {""}
        late = [node for node in nodes if "downsample" in node.name]
        waiting = [node for node in nodes if node not in late]
        del graph.node[:]
        while waiting or late:
            ready = next((node for node in [*waiting, *late] if known.issuperset(node.input)), None)
            assert ready is not None
            (waiting if ready in waiting else late).remove(ready)
            known.update(ready.output)
            placed.add(ready.name)
            graph.node.append(ready)

    def shortcuts_first(graph):
        shortcuts_last(graph)
        nodes = list(graph.node)
        for late in [node for node in nodes if "downsample" in node.name]:
            nodes.remove(late)
            source = next(i for i, node in enumerate(nodes) if late.input[0] in node.output)
            nodes.insert(source + 1, late)
        del graph.node[:]
        graph.node.extend(nodes)

    orders = []
    for name, change in (("last", shortcuts_last), ("first", shortcuts_first)):
        path = rewrite(files["resnet"], tmp_path / f"{name}.onnx", change)
        orders.append([node.name for node in onnx.load(str(path)).graph.node])
        assert_same_function(
            resnet18(ibn="a"), resnet18(1, ibn="a"), weights_from_onnx(path, resnet18(1, ibn="a"), SIZE)
        )
    assert orders[0] != orders[1]


@pytest.mark.parametrize("form", ["Gemm", "MatMul"])
def test_linear_layers_in_each_form(files, tmp_path, form):
    """As Gemm, or as a product and a sum whose weights come through Constant and Identity."""

    def linear(graph):
        conv = next(node for node in graph.node if node.name == "/heads/bottleneck/bottleneck.0/Conv")
        tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        weight = tensors[conv.input[1]][:, :, 0, 0]
        make = onnx.helper.make_node
        nodes = [make("Flatten", [conv.input[0]], ["flat"])]
        if form == "Gemm":
            graph.initializer.append(numpy_helper.from_array(weight, "kernel"))
            nodes += [make("Gemm", ["flat", "kernel", conv.input[2]], [conv.output[0]], transB=1)]
        else:
            kernel = numpy_helper.from_array(np.ascontiguousarray(weight.T))
            nodes += [
                make("Constant", [], ["kernel"], value=kernel),
                make("Identity", ["kernel"], ["same kernel"]),
                make("MatMul", ["flat", "same kernel"], ["product"]),
                make("Add", [conv.input[2], "product"], [conv.output[0]]),
            ]
        at = list(graph.node).index(conv)
        graph.node.remove(conv)
        for offset, node in enumerate(nodes):
            graph.node.insert(at + offset, node)

    path = rewrite(files["osnet"], tmp_path / "linear.onnx", linear)
    assert form in operators(path)
    assert_same_function(osnet(), osnet(seed=1), weights_from_onnx(path, osnet(seed=1), SIZE))


def test_the_model_that_was_given_stays_as_it_is(files):
    model = osnet(seed=1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights_from_onnx(files["osnet"], model, SIZE)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            resnet18,
            r"departs from this one at node '/backbone/conv1/conv/Conv' \(Conv\).*got: product with weights "
            r"\(16, 3, 7, 7\).*expected: product backbone.conv1 with weights \(64, 3, 7, 7\)",
        ),
        (lambda: osnet("ibn"), r"'/backbone/conv1/conv/Conv' \(Conv\) has other parts than backbone.conv1.conv"),
        (
            lambda: osnet(head=HeadSpec(pooling="average")),
            r"departs.*'/heads/bottleneck/bottleneck.0/Conv'.*got: product with "
            r"weights \(512, 128\).*expected: batch norm heads.bottleneck.0 with weights \(128,\)",
        ),
        (
            lambda: osnet(head=HeadSpec(pooling="max", embedding_dim=512, embedding_bias=True, relu=True)),
            "fit this network's layers, but the file computes something else",
        ),
    ],
    ids=["resnet", "ibn", "no embedding layer", "other pooling"],
)
def test_another_network_is_refused_with_the_place(files, build, words):
    with pytest.raises(ModelError, match=f"(?s){words}"):
        weights_from_onnx(files["osnet"], build(), SIZE)


def test_a_file_that_ends_early_is_refused(files, tmp_path):
    def behead(graph):
        last = next(i for i, node in enumerate(graph.node) if node.name == "/backbone/conv5/conv/Conv")
        del graph.node[last:]
        graph.output[0].name = graph.node[-1].output[0]

    path = rewrite(files["osnet"], tmp_path / "short.onnx", behead)
    with pytest.raises(
        ModelError, match=r"(?s)ends before the network does.*the first that is missing is backbone.conv5"
    ):
        weights_from_onnx(path, osnet(), SIZE)


def test_other_weights_at_a_second_use_are_refused(files, tmp_path):
    def untie(graph):
        gates = [node for node in graph.node if "conv2.0/gate/fc1" in node.name]
        assert len(gates) == 4
        tensor = next(tensor for tensor in graph.initializer if tensor.name == gates[0].input[1])
        graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, "untied"))
        gates[2].input[1] = "untied"

    path = rewrite(files["osnet"], tmp_path / "untied.onnx", untie)
    with pytest.raises(
        ModelError, match=r"fc1_2/Conv' \(Conv\) has other weights for backbone.conv2.0.gate.fc1.weight"
    ):
        weights_from_onnx(path, osnet(), SIZE)


@pytest.mark.parametrize("kept", [0, 1000, 300_000])
def test_a_truncated_file_is_refused(files, tmp_path, kept):
    path = tmp_path / "half.onnx"
    path.write_bytes(files["osnet"].read_bytes()[:kept])
    what = r"half\.onnx is (empty|not an ONNX file, or is truncated|not a valid ONNX graph)"
    with pytest.raises(ModelError, match=what):
        weights_from_onnx(path, osnet(), SIZE)


def test_no_file_and_another_size_are_refused(files, tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        weights_from_onnx(tmp_path / "none.onnx", osnet(), SIZE)
    with pytest.raises(ModelError, match=r"does not run on a normalised picture of 32x32"):
        weights_from_onnx(files["osnet"], osnet(), (32, 32))


def test_parameters_outside_of_layers_need_their_names(files, tmp_path):
    class Scaled(Network):
        def __init__(self, seed=0):
            super().__init__(ResNetSpec(depth=18, ibn="a"), HeadSpec(pooling="average"), seed)
            self.scale = nn.Parameter(torch.tensor([2.0]))

        def forward(self, x):
            return super().forward(x) * self.scale

    def scale(graph):
        graph.initializer.append(numpy_helper.from_array(np.array([2.0], np.float32), "scale"))
        before, graph.node[-1].output[0] = graph.node[-1].output[0], "unscaled"
        graph.node.append(onnx.helper.make_node("Mul", ["unscaled", "scale"], [before]))

    kept = rewrite(files["resnet kept"], tmp_path / "kept.onnx", scale)
    assert_same_function(Scaled(), Scaled(1), weights_from_onnx(kept, Scaled(1), SIZE))
    path = rewrite(kept, tmp_path / "anonymous.onnx", anonymise)
    with pytest.raises(ModelError, match=r"(?s)no layer for 1 tensors of the network.*got: scale"):
        weights_from_onnx(path, Scaled(1), SIZE)
