import pytest

from reidkit.deploy.quantize.groups import groups_of
from reidkit.deploy.quantize.placement import Layer


def layer(name, multiply_adds=1, result="y"):
    return Layer(name, "Conv", f"{name}.weight", 0, "x", result, multiply_adds)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("backbone.conv1", "backbone.conv1"),
        ("backbone.layer1.0.conv1", "backbone.layer1.0"),
        ("backbone.layer2.10.downsample.0", "backbone.layer2.10"),
        ("backbone.NL_2.0.W.0", "backbone.NL_2.0"),
        ("backbone.conv1.conv", "backbone.conv1.conv"),  # OSNet's stem
        ("backbone.conv2.0.conv2b.1.conv2", "backbone.conv2.0"),
        ("backbone.conv2.2.0.conv", "backbone.conv2.2.0"),
        ("backbone.4.0.conv1", "backbone.4.0"),  # MGN's trunk and branches
        ("b1.1.0.conv1", "b1.1.0"),
        ("features.3.conv.0.0", "features.3"),
        ("7", "7"),
        ("Conv_12", "Conv_12"),
    ],
)
def test_a_block_is_known_by_its_name(name, block):
    assert [group.name for group in groups_of([layer(name), layer("other")])] == [block, "other"]


def test_a_layer_without_a_name_is_in_the_block_of_its_value():
    layers = [
        layer("onnx::Conv_1", result="/conv1/relu/Relu_output_0"),
        layer("conv2.0.conv1", result="/conv2/conv2.0/conv1/Conv_output_0"),
        layer("onnx::Conv_2", result="/conv2/conv2.0/conv2b/conv2b.1/relu/Relu_output_0"),
        layer("onnx::Conv_3", result="/conv2/conv2.1/relu/Relu_1_output_0"),
        layer("onnx::Conv_4", result="/relu/Relu_2_output_0"),
        layer("onnx::Conv_5", result="/relu/Relu_3_output_0"),
    ]
    assert [(group.name, group.layers) for group in groups_of(layers)] == [
        ("onnx::Conv_1", ("onnx::Conv_1",)),
        ("conv2.0", ("conv2.0.conv1", "onnx::Conv_2")),
        ("conv2.1", ("onnx::Conv_3",)),
        ("onnx::Conv_4", ("onnx::Conv_4",)),
        ("onnx::Conv_5", ("onnx::Conv_5",)),
    ]


def test_the_share_of_the_multiply_adds():
    stem, block = groups_of([layer("stem", 30), layer("layer1.0.a", 50), layer("layer1.0.b", 20)])
    assert (stem.multiply_adds, stem.share) == (30, 0.3)
    assert (block.multiply_adds, block.share) == (70, 0.7)
    assert [group.share for group in groups_of([layer("a", 0), layer("b", 0)])] == [0, 0]


def test_layers_of_one_block_are_divided_and_shared_weights_are_one_layer():
    found = groups_of([layer("net.0.a", 1), layer("net.0.b", 2), layer("net.0.a", 1)])
    assert [(group.name, group.layers, group.multiply_adds) for group in found] == [
        ("net.0.a", ("net.0.a",), 2),
        ("net.0.b", ("net.0.b",), 2),
    ]
