"""Known networks told to TensorRT: its own account of every layer, computed in NumPy, against PyTorch; and built."""

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from fake_tensorrt import fake_tensorrt
from known_networks import CASES, SMALL, Known, distance
from known_networks import known as draw_known
from reidkit.architecture import HeadSpec, ModelSpec, ResNetSpec
from reidkit.deploy.network.description import write_network
from reidkit.deploy.network.layers import Kind, Layers
from reidkit.deploy.network.tensorrt_layers import TensorRtLayers
from reidkit.errors import ModelError
from reidkit.runtime.flavour import Flavour, open_flavour
from tensorrt_interpreter import downcast, run_network

trt = pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.usefixtures("narrow")
FLAVOUR = open_flavour("tensorrt-rtx")
KINDS: tuple[Kind, ...] = ("float32", "float16", "bfloat16")
# Every network in one type, and one of them in all.
TYPED = [(case, KINDS[number % 3]) for number, case in enumerate(CASES)]
TYPED += [(case, kind) for case in ("r18-ibn-a",) for kind in KINDS if (case, kind) not in TYPED]


@cache
def drawn(case: str) -> Known:
    return draw_known(case)


def known(case: str) -> Known:
    """A case whose tensors may be replaced."""
    return drawn(case)._replace(tensors=dict(drawn(case).tensors))


class Written:
    """A known network in the library's own form."""

    def __init__(self, spec, input_, tensors, kind: Kind = "float32"):
        self.log = FLAVOUR.log()
        self.builder = trt.Builder(self.log)
        self.network = FLAVOUR.network(self.builder)
        self.layers = TensorRtLayers(FLAVOUR, self.network)
        self.input = input_
        write_network(self.layers, spec, input_, tensors, kind=kind)

    def run(self, crops, **options):
        result = run_network(trt, self.network, self.layers._kept, crops, **options)
        return result.astype(np.float32)

    def listed(self):
        return [self.network.get_layer(index) for index in range(self.network.num_layers)]

    def build(self, *batches):
        config = FLAVOUR.config(self.builder, "float32", (), None)
        for batch in batches:
            profile = self.builder.create_optimization_profile()
            profile.set_shape("crops", *[(batch, self.input.height, self.input.width, 3)] * 3)
            config.add_optimization_profile(profile)
        return self.builder.build_serialized_network(self.network, config)


@pytest.mark.parametrize("case", CASES)
def test_every_known_network_computes_what_pytorch_does_in_any_batch(case):
    spec, input_, tensors, crops, embeddings = known(case)
    written = Written(spec, input_, tensors)
    assert distance(written.run(crops), embeddings) < 2e-5
    if case in ("r18-ibn-a", "r50-ibn-nl", "mgn"):
        assert distance(written.run(crops[1:]), embeddings[1:]) < 2e-5


@pytest.mark.parametrize(("case", "kind"), [pair for pair in TYPED if pair[1] != "float32"])
def test_rounded_as_its_types_say_the_embeddings_stay(case, kind):
    spec, input_, tensors, crops, embeddings = known(case)
    got = Written(spec, input_, tensors, kind).run(crops, rounding=True)
    # A distance of 0.014 is a cosine of 0.9999; below 1e-5 nothing would have been rounded.
    assert 1e-5 < distance(got, embeddings) < {"float16": 0.014, "bfloat16": 0.1}[kind]


@pytest.mark.parametrize(("case", "kind"), TYPED)
def test_every_known_network_is_built_in_its_types(case, kind):
    spec, input_, tensors, _, embeddings = known(case)
    written = Written(spec, input_, tensors, kind)
    (crops,), (output,) = [written.network.get_input(0)], [written.network.get_output(0)]
    assert (crops.name, crops.dtype, tuple(crops.shape)) == ("crops", trt.uint8, (-1, input_.height, input_.width, 3))
    assert (output.name, output.dtype) == ("embeddings", trt.float32)
    assert tuple(output.shape) == (-1, embeddings.shape[1])
    check_types(written, kind, spec.head)
    data = written.build(2)
    assert data is not None, written.log.errors
    assert data.nbytes > 0.9 * sum(array.nbytes for array in written.layers._kept)
    assert written.log.errors == []


def check_types(written, kind, head):
    """Maps have the type of the network; normalisations, means, GeM's power, the neck and the head are float32."""
    low, wide = {"float32": trt.float32, "float16": trt.float16, "bfloat16": trt.bfloat16}[kind], trt.float32
    found = {}
    for layer in written.listed():
        tensors = [layer.get_input(index) for index in range(layer.num_inputs)]
        inputs = {tensor.dtype for tensor in tensors if tensor is not None}
        name = layer.type.name
        if name not in ("CAST", "SLICE", "GATHER", "SHAPE", "CONSTANT"):
            assert inputs == {layer.get_output(0).dtype}, layer.name
        if name == "ELEMENTWISE":
            name = downcast(trt, layer).op.name
        found.setdefault(name, set()).add(layer.get_output(0).dtype)
    assert found["REDUCE"] == found["SCALE"] == {wide}
    assert found.get("POW", {wide}) == found.get("NORMALIZATION", {wide}) == {wide}
    assert found["CONVOLUTION"] == {low, *([wide] if head.embedding_dim else [])}
    assert found["ACTIVATION"] == {low, *([wide] if head.relu else [])}
    assert found["POOLING"] == found.get("MATRIX_MULTIPLY", {low}) == {low}


def test_options_that_the_cases_leave_out():
    heads = [HeadSpec("max", neck=False), HeadSpec("average+max", embedding_dim=8, embedding_bias=True, relu=True)]
    for head in heads:
        spec = ModelSpec(ResNetSpec(ibn="none", last_stride=2, se=True, preactivation=True), head)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(CASES, "here", (spec, replace(SMALL, color="bgr")))
            _, input_, tensors, crops, embeddings = draw_known("here")
        assert distance(Written(spec, input_, tensors).run(crops), embeddings) < 2e-5


def test_instance_norm_does_not_mind_how_large_a_map_is():
    """What is normalised has any scale: the statistics of maps that float16 holds must not leave its range."""
    spec, input_, tensors, crops, embeddings = known("r18-ibn-a")
    for name in [name for name in tensors if name.endswith(".bn1.IN.weight")]:
        conv = name.replace("bn1.IN.weight", "conv1.weight")
        larger = np.where(np.arange(len(tensors[conv])) < len(tensors[name]), 100, 1).astype(np.float32)
        tensors[conv] = tensors[conv] * larger[:, None, None, None]
    got = Written(spec, input_, tensors, "float16").run(crops, rounding=True)
    assert distance(got, embeddings) < 0.014


def test_a_normalisation_has_the_epsilon_that_it_is_given():
    network = FLAVOUR.network(trt.Builder(FLAVOUR.log()))
    layers = TensorRtLayers(FLAVOUR, network)
    x = layers.crops(SMALL)
    layers.embeddings(layers.mean(layers.instance_norm(x, np.float32([2, 3]), np.float32([4, 5]), 0.25)))
    crops = np.random.default_rng(0).integers(0, 256, (2, 64, 32, 3), dtype=np.uint8)
    got = run_network(trt, network, layers._kept, crops)
    (norm,) = [layer for layer in map(network.get_layer, range(network.num_layers)) if "NORM" in layer.type.name]
    assert downcast(trt, norm).epsilon == 0.25
    pixels = (crops / 255 - np.array(SMALL.mean)) / np.array(SMALL.std)
    np.testing.assert_allclose(got, np.stack([[4, 5, rows[..., 2].mean()] for rows in pixels]), rtol=1e-4, atol=1e-4)


def test_weights_beyond_half_precision_are_refused():
    spec, input_, tensors, _, _ = known("osnet")
    name = "backbone.conv1.bn"
    tensors[f"{name}.running_var"] = np.zeros_like(tensors[f"{name}.running_var"])
    tensors[f"{name}.weight"] = np.full_like(tensors[f"{name}.weight"], 1e5)
    with pytest.raises(ModelError) as caught:
        Written(spec, input_, tensors, "float16")
    assert caught.value.problem == "Float16 does not hold the weights of a layer of (16, 3, 7, 7)"
    assert caught.value.fix == (
        "build it in bfloat16 or float32, or with --via parser, which keeps such a layer in float32"
    )
    Written(spec, input_, tensors, "bfloat16")


def test_weights_live_as_long_as_the_writer():
    spec, input_, tensors, crops, embeddings = known("osnet-ibn")
    tensors = {name: tensor.copy() for name, tensor in tensors.items()}
    written = Written(spec, input_, tensors)
    for tensor in tensors.values():
        tensor[...] = 0  # the writer has its own
    assert distance(written.run(crops), embeddings) < 2e-5


def test_it_is_a_writer_like_any_other():
    assert isinstance(TensorRtLayers(FLAVOUR, None), Layers)


# Where the network is not typed: TensorRT 8.6


@pytest.mark.parametrize("case", ["r18-ibn-b", "r50-se-nl", "mgn"])
def test_untyped_every_layer_that_computes_is_told_its_type(case):
    fake = fake_tensorrt("8.6.0")
    flavour = Flavour("tensorrt", fake)
    network = fake.Network()
    spec, input_, tensors, _, _ = known(case)
    write_network(TensorRtLayers(flavour, network), spec, input_, tensors, kind="float16")
    # Casts aside: a typed network has two more around a normalisation, which is told the type of its map here.
    layers = [layer for layer in network.layers if layer.kind != "CAST"]
    typed = [layer for layer in Written(spec, input_, tensors, "float16").listed() if layer.type.name != "CAST"]
    assert [layer.kind for layer in layers] == [layer.type.name for layer in typed]
    names = {trt.float32: "float32", trt.float16: "float16"}
    moving = {"CONSTANT", "SHUFFLE", "SHAPE", "SLICE", "GATHER", "CONCATENATION"}
    told = Counter()
    for mine, theirs in zip(layers, typed, strict=True):
        kind = "float16" if mine.kind == "NORMALIZATION" else names.get(theirs.get_output(0).dtype)
        if mine.kind in moving or kind is None:
            assert (mine.precision, mine.output_types) == (None, {}), mine.kind
        else:
            assert (mine.precision, mine.output_types) == (kind, {0: kind}), mine.kind
            told[kind] += 1
    assert told["float16"] > 10
    assert told["float32"] > 3


def test_untyped_a_normalisation_of_weights_that_float16_does_not_hold_is_float32():
    fake = fake_tensorrt("8.6.0")
    spec, input_, tensors, _, _ = known("r18-ibn-a")
    name = "backbone.layer1.0.bn1.IN.weight"
    tensors[name] = np.full_like(tensors[name], 1e5)
    network = fake.Network()
    write_network(TensorRtLayers(Flavour("tensorrt", fake), network), spec, input_, tensors, kind="float16")
    norms = [layer for layer in network.layers if layer.kind == "NORMALIZATION"]
    assert [layer.precision for layer in norms] == ["float32"] + ["float16"] * (len(norms) - 1)
    given = network.layers[network.layers.index(norms[0]) - 3]
    assert given.kind == "CAST"  # of the map; then its two weights
    assert norms[0].inputs[0] is given.output


def test_untyped_sizes_are_32_bits_wide():
    fake = fake_tensorrt("8.6.0")
    network = fake.Network()
    spec, input_, tensors, _, _ = known("mgn")
    write_network(TensorRtLayers(Flavour("tensorrt", fake), network), spec, input_, tensors)
    sizes = [layer.weights.values for layer in network.layers if layer.kind == "CONSTANT" and layer.shape == (4,)]
    assert {array.dtype for array in sizes} == {np.dtype(np.int32)}
    assert len(sizes) == 10
