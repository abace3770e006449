"""Known networks written as ONNX: ONNX Runtime must give what PyTorch gives, and what the exporter's graph gives."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from known_networks import CASES, distance, known
from reidkit.architecture import HeadSpec, ModelSpec, OSNetSpec
from reidkit.bundle import open_bundle
from reidkit.deploy.network.layers import Layers
from reidkit.deploy.network.onnx_layers import OnnxLayers, onnx_network
from reidkit.errors import ModelError
from reidkit.types import InputSpec


def session(graph):
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


def run(graph, crops):
    return np.asarray(session(graph).run(["embeddings"], {"crops": crops})[0])


def types_of(graph):
    """The type of every value, as ONNX itself infers it."""
    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph), strict_mode=True, data_prop=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    return inferred, {value.name: value.type.tensor_type.elem_type for value in values} | {
        tensor.name: tensor.data_type for tensor in inferred.initializer
    }


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("case", CASES)
def test_every_known_network_gives_what_pytorch_gives_in_any_batch(case):
    spec, input_, tensors, crops, embeddings = known(case)
    opened = session(onnx_network(spec, input_, tensors))
    got = np.asarray(opened.run(None, {"crops": crops})[0])
    assert distance(got, embeddings) < 2e-5
    alone = np.asarray(opened.run(None, {"crops": crops[1:]})[0])
    assert distance(alone, embeddings[1:]) < 2e-5


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("case", ["r18-ibn-a", "r50-ibn-nl", "osnet-ibn"])
def test_in_half_precision_the_embeddings_stay(case):
    spec, input_, tensors, crops, embeddings = known(case)
    got = run(onnx_network(spec, input_, tensors, kind="float16"), crops)
    # A distance of 0.014 is a cosine of 0.9999; below 1e-5 it would not be half precision.
    assert 1e-5 < distance(got, embeddings) < 0.014


def test_the_graph_is_the_exporters(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    manifest, golden = bundle.manifest, bundle.golden()
    assert manifest.architecture is not None
    assert bundle.weights is not None
    graph = onnx_network(manifest.architecture, manifest.input, load_file(bundle.weights))
    assert distance(run(graph, golden.crops), run((tiny_bundle / "model.onnx").read_bytes(), golden.crops)) < 1e-5
    ours, theirs = (onnx.load_from_string(data).graph for data in (graph, (tiny_bundle / "model.onnx").read_bytes()))
    for end in ("input", "output"):
        (mine,), (exported,) = getattr(ours, end), getattr(theirs, end)
        assert (mine.name, helper.printable_type(mine.type)) == (
            exported.name,
            helper.printable_type(exported.type).replace("s77", "n"),
        )


def test_the_same_weights_give_the_same_bytes():
    spec, input_, tensors, _, _ = known("osnet-ibn")
    graph = onnx_network(spec, input_, tensors)
    assert graph == onnx_network(spec, input_, dict(reversed(tensors.items())))
    model = onnx.load_from_string(graph)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert model.ir_version == 8
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"Conv_0.weight", "Conv_0.bias"} & {tensor.name for tensor in model.graph.initializer} == {"Conv_0.weight"}


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("kind", "element"), [("float16", TensorProto.FLOAT16), ("bfloat16", TensorProto.BFLOAT16)])
@pytest.mark.parametrize("case", ["r18-ibn-a", "r18-se", "osnet-ain"])
def test_maps_have_the_type_and_statistics_pooling_and_neck_are_float32(case, kind, element):
    spec, input_, tensors, _, _ = known(case)
    graph, types = types_of(onnx_network(spec, input_, tensors, kind=kind))
    float32 = {"InstanceNormalization", "GlobalAveragePool", "GlobalMaxPool", "Pow", "Clip"}
    kinds = {}
    for node in graph.node:
        inputs = {types[name] for name in node.input} - {TensorProto.INT64}
        if node.op_type != "Cast":
            assert len(inputs) == 1, node.name
        kinds.setdefault(node.op_type, set()).update(inputs)
    for operator in float32 & kinds.keys():
        assert kinds[operator] == {TensorProto.FLOAT}, operator
    head = {TensorProto.FLOAT} if spec.head.embedding_dim else set()
    assert kinds["Conv"] == {element} | head
    assert kinds["MaxPool"] == {element}
    assert types["embeddings"] == TensorProto.FLOAT


def test_bfloat16_weights_are_rounded_to_nearest_even():
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -3.14159, 1e-40, 65504 * 8], np.float32).reshape(6, 1, 1, 1)
    layers = OnnxLayers()
    x = layers.cast(layers.crops(InputSpec(64, 32)), "bfloat16")
    layers.embeddings(
        layers.cast(layers.mean(layers.cast(layers.conv(x, np.tile(values, (1, 3, 1, 1))), "float32")), "float32")
    )
    weight = next(t for t in layers.model(opset=22).graph.initializer if t.name == "Conv_0.weight")
    got = np.frombuffer(weight.raw_data, ml_dtypes.bfloat16).reshape(6, 3)[:, 0]
    np.testing.assert_array_equal(got, values.reshape(-1).astype(ml_dtypes.bfloat16))


def test_weights_beyond_half_precision_are_refused_by_name():
    spec, input_, tensors, _, _ = known("osnet")
    tensors["backbone.conv1.bn.running_var"] = np.full_like(tensors["backbone.conv1.bn.running_var"], 0)
    tensors["backbone.conv1.bn.weight"] = np.full_like(tensors["backbone.conv1.bn.weight"], 1e5)
    with pytest.raises(ModelError, match=r"The weights Conv_0.weight are beyond float16\n  got: up to .*e\+0\d, with"):
        onnx_network(spec, input_, tensors, kind="float16")
    assert len(onnx_network(spec, input_, tensors, kind="bfloat16")) > 0


def test_no_constant_knows_the_batch():
    layers = OnnxLayers()
    x = layers.crops(InputSpec(4, 6))
    layers.embeddings(layers.mean(layers.attend(x, x, x)))
    graph = layers.model(opset=18).graph
    constants = {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in graph.initializer}
    sizes = [constants[node.input[1]] for node in graph.node if node.op_type == "Reshape"]
    assert sizes == [[0, 3, 24]] * 3 + [[0, 3, 4, 6]]


def test_it_is_a_writer_like_any_other():
    assert isinstance(OnnxLayers(), Layers)


def test_missing_weights_are_named():
    spec = ModelSpec(OSNetSpec(width=0.25), HeadSpec(pooling="average"))
    with pytest.raises(ModelError, match=r"The weights of x.wts do not fit.*\n  got: \d+ missing: backbone\.conv1"):
        onnx_network(spec, InputSpec(64, 32), {}, source="x.wts")
