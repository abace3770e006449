"""Small IRs made with OpenVINO's own operators; what they give is computed by numpy in float64, from the pixels on."""

from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

import reidkit
from reidkit.bundle import open_bundle
from reidkit.deploy.foreign_openvino import import_ir, ir_input_size
from reidkit.deploy.verify import check_parity
from reidkit.errors import BundleError, ModelError, OutputError, RuntimeMissing
from reidkit.runtime import installed
from reidkit.types import InputSpec

HEIGHT, WIDTH, DIM = 12, 8, 6
SPEC = InputSpec(HEIGHT, WIDTH, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
BARE = InputSpec(HEIGHT, WIDTH, "bilinear", "bgr", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

_rng = np.random.default_rng(7)
KERNEL = _rng.normal(size=(5, 3, 3, 3)).astype(np.float32)
HEAD = _rng.normal(size=(DIM, 5)).astype(np.float32)


def by_hand(crops: np.ndarray, spec: InputSpec = SPEC) -> np.ndarray:
    """Pre-processing, a 3x3 convolution, ReLU, the mean over the picture, a linear map; in float64."""
    pixels = crops.astype(np.float64)[..., :: 1 if spec.color == "rgb" else -1]
    planes = (pixels / spec.scale - spec.mean) / spec.std
    windows = np.lib.stride_tricks.sliding_window_view(planes, (3, 3), axis=(1, 2))
    maps = np.einsum("nhwcij,ocij->nohw", windows, KERNEL.astype(np.float64))
    return np.maximum(maps, 0).mean(axis=(2, 3)) @ HEAD.T.astype(np.float64)


def image(shape=(1, 3, HEIGHT, WIDTH), kind: type = np.float32, name="data"):
    port = ops.parameter(list(shape), kind, name=name)
    port.output(0).get_tensor().set_names({name})
    return port


def trunk(pixels, kernel=KERNEL):
    maps = ops.relu(ops.convolution(pixels, ops.constant(kernel), [1, 1], [0, 0], [0, 0], [1, 1]))
    return ops.reduce_mean(maps, ops.constant(np.array([2, 3])), keep_dims=True)


def features(pooled, head=HEAD):
    flat = ops.reshape(pooled, ops.constant(np.array([0, 5])), special_zero=True)
    return ops.matmul(flat, ops.constant(head), False, True)


def network(*results, inputs):
    model = openvino.Model([ops.result(node) for node in results], list(inputs), "net")
    for i, output in enumerate(model.outputs):
        output.get_tensor().set_names({f"out{i}"})
    return model


def plain(shape=(1, 3, HEIGHT, WIDTH), **weights):
    data = image(shape)
    return network(features(trunk(data, weights.get("kernel", KERNEL)), weights.get("head", HEAD)), inputs=[data])


@pytest.fixture
def save(tmp_path):
    def write(model: openvino.Model, *, half: bool = False) -> Path:
        openvino.save_model(model, str(tmp_path / "net.xml"), compress_to_fp16=half)
        return tmp_path / "net.xml"

    return write


@pytest.fixture
def take_in(save, tmp_path):
    def run(model: openvino.Model, spec: InputSpec = SPEC, *, half: bool = False, **options):
        return import_ir(save(model, half=half), tmp_path / "net.reid", spec=spec, **options)

    return run


def some_crops(n=5):
    return np.random.default_rng(3).integers(0, 256, (n, HEIGHT, WIDTH, 3), dtype=np.uint8)


def assert_near(got, expected, fraction=1e-4):
    distance = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert distance.max() < fraction


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize(("scale", "mean"), [(255.0, (0.4, 0.5, 0.6)), (1.0, (104.0, 117.0, 123.0)), (1.0, (0.0,) * 3)])
def test_the_bundle_gives_what_numpy_gives_from_the_pixels_on(take_in, color, scale, mean):
    spec = InputSpec(HEIGHT, WIDTH, color=color, scale=scale, mean=mean, std=(0.2, 0.25, 0.3))
    bundle, crops = take_in(plain(), spec).bundle, some_crops()
    golden, embedder = bundle.golden(), reidkit.load(bundle, "openvino", threads=1)
    assert_near(embedder.embed(crops), by_hand(crops, spec))
    assert_near(golden.embeddings, by_hand(golden.crops, spec))
    assert check_parity(embedder, golden).passed


def test_rgb_and_bgr_are_not_the_same():
    # Else the test above would prove nothing.
    assert np.abs(by_hand(some_crops()) - by_hand(some_crops()[..., ::-1])).max() > 0.1


def test_the_bundle_says_what_it_is(take_in, tmp_path):
    result = take_in(plain(), BARE, licence="permissive")
    bundle = open_bundle(tmp_path / "net.reid")
    assert sorted(path.name for path in bundle.path.iterdir()) == [
        "golden.npz",
        "manifest.json",
        "model.bin",
        "model.xml",
    ]
    assert bundle.graph_format == "openvino"
    assert bundle.model == bundle.path / "model.xml"
    manifest = bundle.manifest
    assert manifest == result.bundle.manifest
    assert (manifest.input, manifest.licence, manifest.precision, manifest.batch) == (
        BARE,
        "permissive",
        "float32",
        None,
    )
    assert manifest.provenance.source == "net.xml and net.bin"
    assert manifest.provenance.framework == f"openvino {openvino.__version__}"
    (note,) = result.notes
    assert note.startswith("The graph was made for batches of 1; now it takes any, as runs of 1, 2, 3, 5 crops")


def test_only_openvino_opens_it(take_in):
    bundle = take_in(plain()).bundle
    assert installed(bundle) == ["openvino"]
    for runtime in ("onnxruntime", "tensorrt", "pytorch"):
        text = rf"net\.reid holds its network as OpenVINO IR, which {runtime} cannot read\n  expected: runtime openvino"
        with pytest.raises(RuntimeMissing, match=text):
            reidkit.load(bundle, runtime)
    with pytest.raises(RuntimeMissing, match=r"was not quantised[\s\S]*to do: import the INT8 IR of the same network"):
        reidkit.load(bundle, "openvino", precision="int8")


def test_nhwc_and_float16_input(take_in):
    data = image((1, HEIGHT, WIDTH, 3), np.float16)
    turned = ops.transpose(ops.convert(data, "f32"), ops.constant(np.array([0, 3, 1, 2])))
    bundle, crops = take_in(network(features(trunk(turned)), inputs=[data])).bundle, some_crops()
    assert_near(reidkit.load(bundle, "openvino").embed(crops), by_hand(crops), 5e-3)


def test_compressed_weights_are_computed_with_in_float32(take_in):
    bundle, crops = take_in(plain(), half=True).bundle, some_crops()
    assert bundle.manifest.precision == "float32"
    assert_near(reidkit.load(bundle, "openvino").embed(crops), by_hand(crops), 5e-3)


def test_fake_quantisation_is_int8(take_in):
    data = image()
    low, high = ops.constant(np.float32(-4)), ops.constant(np.float32(4))
    pixels = ops.fake_quantize(data, low, high, low, high, 256)
    bundle, crops = take_in(network(features(trunk(pixels)), inputs=[data])).bundle, some_crops()
    assert bundle.manifest.precision == "int8"
    embedder = reidkit.load(bundle, "openvino", precision="int8")
    assert (embedder.spec.precision, embedder.spec.build) == ("int8", None)
    assert_near(embedder.embed(crops), by_hand(crops), 0.05)
    with pytest.raises(RuntimeMissing, match=r"openvino does not run this bundle in float32 here"):
        reidkit.load(bundle, "openvino", precision="float32")


def test_weights_of_eight_bits_are_int8(take_in):
    step = np.float32(np.abs(HEAD).max() / 127)
    codes = ops.convert(ops.constant(np.round(HEAD / step).astype(np.int8)), "f32")
    data = image()
    flat = ops.reshape(trunk(data), ops.constant(np.array([0, 5])), special_zero=True)
    head = ops.multiply(codes, ops.constant(step))
    bundle = take_in(network(ops.matmul(flat, head, False, True), inputs=[data])).bundle
    assert bundle.manifest.precision == "int8"


def test_a_feature_map_of_one_pixel_is_flattened_and_other_outputs_fall_away(take_in):
    data = image()
    pooled = trunk(data)
    model = network(pooled, features(pooled), inputs=[data])
    with pytest.raises(ModelError, match="has several outputs that may be the embedding") as caught:
        take_in(model)
    assert "got: 'out0' float32 (1, 5, 1, 1); 'out1' float32 (1, 6)" in str(caught.value)
    with pytest.raises(ModelError, match=r"has no output 'x'\n  expected: one of out0, out1"):
        take_in(model, output="x")
    bundle = take_in(model, output="out0").bundle
    assert reidkit.load(bundle, "openvino").embed(some_crops(3)).shape == (3, 5)
    assert "MatMul" not in bundle.model.read_text()
    bundle = take_in(model, output="out1", overwrite=True).bundle
    assert_near(reidkit.load(bundle, "openvino").embed(some_crops()), by_hand(some_crops()))


def test_a_constant_joined_to_the_batch_keeps_it_fixed(take_in):
    data = image()
    token = ops.constant(np.array([[1, 2, 3]], np.float32))
    result = take_in(network(ops.concat([features(trunk(data)), token], 1), inputs=[data]))
    assert result.bundle.manifest.batch == 1
    (note,) = result.notes
    assert note.startswith("The graph takes batches of 1 only, and was left so. Made to take any, it fails: ")
    crops = some_crops()
    expected = np.concatenate([by_hand(crops), np.tile([1, 2, 3], (5, 1))], axis=1)
    for hint in ("latency", "throughput"):
        assert_near(reidkit.load(result.bundle, "openvino", hint=hint).embed(crops), expected)


def test_a_graph_that_mixes_the_crops_of_a_batch_stays_fixed(take_in):
    data = image((-1, 3, HEIGHT, WIDTH))
    rows = features(trunk(data))
    mixed = ops.add(rows, ops.reduce_mean(rows, ops.constant(np.array([0])), keep_dims=True))
    result = take_in(network(mixed, inputs=[data]))
    assert result.bundle.manifest.batch == 1
    assert "in a batch of 2, an embedding is " in result.notes[0]
    assert_near(reidkit.load(result.bundle, "openvino").embed(some_crops()), 2 * by_hand(some_crops()))


def test_sizes(take_in, save):
    assert ir_input_size(save(plain())) == (HEIGHT, WIDTH)
    assert ir_input_size(save(plain((-1, 3, -1, WIDTH)))) is None
    with pytest.raises(
        ModelError, match=r"takes crops of another size\n  got: 16x8 \(height x width\)\n  expected: 12x8"
    ):
        take_in(plain(), InputSpec(16, WIDTH))
    bundle = take_in(plain((-1, 3, -1, -1))).bundle
    assert_near(reidkit.load(bundle, "openvino").embed(some_crops()), by_hand(some_crops()))


def test_an_unclear_layout_is_read_off_the_graph_or_said(take_in):
    def flattening(layout=None):
        data = image((1, 3, 5, 3))
        if layout:
            data.set_layout(openvino.Layout(layout))
        return network(ops.reshape(data, ops.constant(np.array([0, 45])), special_zero=True), inputs=[data])

    with pytest.raises(ModelError, match="does not say which axis of its input holds the channels"):
        take_in(flattening(), InputSpec(5, 3))
    assert take_in(flattening("NCHW"), InputSpec(5, 3)).bundle.manifest.embedding.dim == 45
    assert take_in(flattening(), InputSpec(5, 3), layout="nchw", overwrite=True).bundle.manifest.batch is None


def test_what_is_no_embedding_network_is_refused(take_in):
    data, camera = image(), image((1, 4), name="camera")
    with pytest.raises(ModelError, match="takes more than an image") as caught:
        take_in(network(features(trunk(data)), ops.relu(camera), inputs=[data, camera]))
    assert "got: 'data' float32 (1, 3, 12, 8); 'camera' float32 (1, 4)" in str(caught.value)
    whole = image(kind=np.uint8)
    with pytest.raises(ModelError, match=r"does not take float images\n  got: 'data' uint8 \(1, 3, 12, 8\)"):
        take_in(network(features(trunk(ops.convert(whole, "f32"))), inputs=[whole]))
    ours = image(kind=np.uint8, name="crops")
    with pytest.raises(ModelError, match="does not take float images"):  # by one name alone it is not ours
        take_in(network(features(trunk(ops.convert(ours, "f32"))), inputs=[ours]))
    gray = image((1, 1, HEIGHT, WIDTH))
    with pytest.raises(ModelError, match="does not take images of three channels"):
        take_in(network(ops.relu(gray), inputs=[gray]))
    data = image()
    boxes = ops.reshape(data, ops.constant(np.array([1, 1, -1, 4])), special_zero=False)
    with pytest.raises(ModelError, match=r"gives no embedding\n  got: 'out0' float32 \(1, 1, 72, 4\)"):
        take_in(network(boxes, inputs=[data]))


def test_nan_weights_are_refused_and_named(take_in, tmp_path):
    broken = HEAD.copy()
    broken[:, 0] = np.nan
    with pytest.raises(ModelError, match="gives NaN or infinite embeddings") as caught:
        take_in(plain(head=broken))
    assert "its weights hold NaN or infinite values (" in str(caught.value)
    assert not (tmp_path / "net.reid").exists()


# Files


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<html></html>", "is not the .xml of an OpenVINO IR\n  got: 13 bytes that begin with b'<html></html>'"),
        (b"\x08\x07\x12\x07pytorch", "is not the .xml of an OpenVINO IR"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is not the .xml of an OpenVINO IR\n  got: a Git LFS pointer",
        ),
        (b'<?xml version="1.0"?><net name="x" version="11"></net>', "takes no input"),
    ],
)
def test_a_file_that_is_no_ir(save, tmp_path, data, message):
    file = save(plain())
    file.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        import_ir(file, tmp_path / "net.reid", spec=SPEC)
    assert f"{file} {message}" in str(caught.value)


def test_files_that_are_not_there(save, tmp_path):
    with pytest.raises(ModelError, match=r"gone\.xml does not exist\n  expected: the \.xml of an OpenVINO IR"):
        ir_input_size(tmp_path / "gone.xml")
    with pytest.raises(ModelError, match="is a folder"):
        ir_input_size(tmp_path)
    file = save(plain())
    file.with_suffix(".bin").unlink()
    text = (
        r"net\.bin does not exist\n  expected: the weights of net\.xml, beside it\n  to do: copy both files of the IR"
    )
    with pytest.raises(ModelError, match=text):
        import_ir(file, tmp_path / "net.reid", spec=SPEC)


@pytest.mark.parametrize(("suffix", "keep"), [(".bin", 0.5), (".bin", 0.0), (".xml", 0.5), (".xml", 0.95)])
def test_damaged_files(save, tmp_path, suffix, keep):
    file = save(plain())
    damaged = file.with_suffix(suffix)
    data = damaged.read_bytes()
    damaged.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ModelError, match=r"cannot read .*net\.xml with net\.bin\n  got: ") as caught:
        import_ir(file, tmp_path / "net.reid", spec=SPEC)
    assert "Exception from" not in str(caught.value)
    assert not (tmp_path / "net.reid").exists()


def test_an_operator_that_openvino_does_not_have(save, tmp_path):
    file = save(plain())
    file.write_text(file.read_text().replace('type="ReLU"', 'type="Magic"'))
    with pytest.raises(ModelError, match=r"net\.xml") as caught:
        import_ir(file, tmp_path / "net.reid", spec=SPEC)
    assert "Magic" in str(caught.value)


def test_a_place_that_is_taken_or_no_bundles_is_refused_first(tmp_path):
    with pytest.raises(BundleError, match=r"A bundle's name must end in \.reid"):
        import_ir(tmp_path / "gone.xml", tmp_path / "net", spec=SPEC)
    (tmp_path / "net.reid").mkdir()
    with pytest.raises(OutputError, match="already exists"):
        import_ir(tmp_path / "gone.xml", tmp_path / "net.reid", spec=SPEC)


def test_a_bundle_of_ir_that_was_changed_is_not_opened(take_in):
    path = take_in(plain()).bundle.path
    weights = bytearray((path / "model.bin").read_bytes())
    weights[5] ^= 1
    (path / "model.bin").write_bytes(bytes(weights))
    with pytest.raises(BundleError, match=r"model\.bin is not the file that the manifest was written for"):
        open_bundle(path)
    (path / "model.bin").unlink()
    with pytest.raises(BundleError, match=r"model\.bin is missing"):
        open_bundle(path)
