"""A bundle as Caffe files: what is in them, and what is refused."""

import hashlib
from dataclasses import replace

import cv2
import numpy as np
import pytest

from conditions import unprivileged
from osnet_bundle import write_osnet
from reidkit.architecture import HeadSpec, ModelSpec, OSNetSpec, TimmSpec
from reidkit.deploy.caffe import write_caffe
from reidkit.errors import ConfigError, ModelError, OutputError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_osnet(tmp_path_factory.mktemp("bundle") / "small.reid")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_opencv_reproduces_the_golden_embeddings(bundle, tmp_path):
    write_caffe(bundle, tmp_path / "small.prototxt")
    assert names(tmp_path) == ["small.caffemodel", "small.prototxt"]
    net = cv2.dnn.readNetFromCaffe(str(tmp_path / "small.prototxt"), str(tmp_path / "small.caffemodel"))
    golden = bundle.golden()
    net.setInput(golden.crops.transpose(0, 3, 1, 2).astype(np.float32), "data")
    scale = np.abs(golden.embeddings).max()
    np.testing.assert_allclose(net.forward("embedding"), golden.embeddings, rtol=0, atol=1e-5 * scale)


def test_the_text_says_what_goes_in_and_comes_out(bundle, tmp_path):
    write_caffe(bundle, tmp_path / "small.prototxt")
    text = (tmp_path / "small.prototxt").read_text(encoding="utf-8")
    digest = hashlib.sha256((tmp_path / "small.caffemodel").read_bytes()).hexdigest()
    assert text.startswith(
        "# small, written by reidkit\n"
        "# in:      data, float n x 3 x 32 x 16, RGB, 0 to 255; resized with bicubic\n"
        "# out:     embedding, n x 16, not normalised\n"
        f"# weights: small.caffemodel, sha256 {digest}\n"
        'name: "small"\n'
    )


def test_a_name_of_several_lines_stays_a_comment(bundle, tmp_path):
    strange = replace(bundle, manifest=replace(bundle.manifest, name='a\nlayer { name: "b" }'))
    write_caffe(strange, tmp_path / "x.prototxt")
    assert cv2.dnn.readNetFromCaffe(str(tmp_path / "x.prototxt")).getLayerNames()[0] == "convolution1"
    assert (tmp_path / "x.prototxt").read_text(encoding="utf-8").startswith('# a layer { name: "b" }, written by')


@pytest.mark.parametrize("name", ["x.caffemodel", "x.txt", "x"])
def test_another_suffix_is_refused(bundle, tmp_path, name):
    with pytest.raises(ConfigError) as caught:
        write_caffe(bundle, tmp_path / name)
    assert f"got: {name}\n  expected: NAME.prototxt; NAME.caffemodel is written beside it" in str(caught.value)
    assert "to do: call it x.prototxt" in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "problem", "got"),
    [
        (None, "is a foreign graph, of which only the ONNX file is known", None),
        (ModelSpec(TimmSpec(name="resnet10t"), HeadSpec("own")), "cannot be written as Caffe files", "timm"),
    ],
)
def test_networks_without_a_description_are_refused(bundle, tmp_path, architecture, problem, got):
    other = replace(bundle, manifest=replace(bundle.manifest, architecture=architecture))
    with pytest.raises(ModelError) as caught:
        write_caffe(other, tmp_path / "x.prototxt")
    assert caught.value.problem == f"{bundle.path} {problem}"
    assert caught.value.fix == "use its model.onnx"
    assert (got or "") in str(caught.value.got)
    assert names(tmp_path) == []


def test_weights_of_another_network_are_refused_by_name(bundle, tmp_path):
    spec = ModelSpec(OSNetSpec(width=0.25, variant="ibn"), HeadSpec("average", embedding_dim=16))
    other = replace(bundle, manifest=replace(bundle.manifest, architecture=spec))
    with pytest.raises(ModelError, match=r"(?s)weights\.safetensors do not fit.*missing: backbone\.conv2\.0\.\*"):
        write_caffe(other, tmp_path / "x.prototxt")
    assert names(tmp_path) == []


@pytest.mark.parametrize("taken", ["x.prototxt", "x.caffemodel"])
def test_nothing_is_replaced_unasked(bundle, tmp_path, taken):
    (tmp_path / taken).write_text("mine")
    with pytest.raises(OutputError, match=f"{taken} already exists\n  to do: choose another name, or say --overwrite"):
        write_caffe(bundle, tmp_path / "x.prototxt")
    assert names(tmp_path) == [taken]
    assert (tmp_path / taken).read_text() == "mine"
    write_caffe(bundle, tmp_path / "x.prototxt", overwrite=True)
    assert names(tmp_path) == ["x.caffemodel", "x.prototxt"]
    assert (tmp_path / taken).read_bytes() != b"mine"


def test_a_folder_that_may_not_be_written_to(tmp_path):
    bundle = write_osnet(tmp_path / "small.reid")
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o555)
    with unprivileged(folder), pytest.raises(OutputError, match=r"(?s)Cannot write .*x\.prototxt.*may write to"):
        write_caffe(bundle, folder / "x.prototxt")
    assert names(folder) == []


def test_a_full_disk_leaves_neither_file(bundle, tmp_path, monkeypatch):
    (tmp_path / "x.prototxt").write_text("old")
    (tmp_path / "x.caffemodel").write_text("old")

    def full(path, data):
        with path.open("wb") as stream:
            stream.write(data[:1000])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OutputError, match=r"(?s)Cannot write .*x\.caffemodel.*No space left.*free some space"):
        write_caffe(bundle, tmp_path / "x.prototxt", overwrite=True)
    assert names(tmp_path) == ["x.caffemodel", "x.prototxt"]
    assert {(tmp_path / name).read_text() for name in names(tmp_path)} == {"old"}
