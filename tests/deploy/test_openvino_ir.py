"""A bundle's graph as OpenVINO IR, opened here by OpenVINO alone and held to NumPy."""

from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from reidkit.bundle import INT8_MODELS, Bundle, Golden, replace_files, write_bundle
from reidkit.deploy import openvino_ir
from reidkit.deploy.openvino_ir import write_ir
from reidkit.errors import BundleError, ConfigError, ModelError, OutputError, RuntimeMissing
from reidkit.manifest import Embedding, Manifest
from reidkit.runtime.openvino_core import CORE
from reidkit.types import InputSpec

HEAD = np.random.default_rng(7).normal(size=(3, 64)).astype(np.float32)
CROPS = np.random.default_rng(8).integers(0, 256, (5, 4, 2, 3), dtype=np.uint8)


def by_hand(crops: np.ndarray, head: np.ndarray = HEAD) -> np.ndarray:
    return crops.mean(axis=(1, 2), dtype=np.float64) / 255 @ head.astype(np.float64)


def graph(*, rounded: bool = False) -> bytes:
    """The mean colour and a linear map; `rounded` quantises the colours in steps of 0.005."""
    nodes = [
        helper.make_node("Cast", ["crops"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["sums"], axes=[1, 2], keepdims=0),
        helper.make_node("Div", ["sums", "white"], ["mean"]),
        helper.make_node("QuantizeLinear", ["mean", "step", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "step", "zero"], ["colors"]),
        helper.make_node("MatMul", ["colors" if rounded else "mean", "head"], ["embeddings"]),
    ]
    kept = nodes if rounded else [node for node in nodes if "step" not in node.input]
    made = helper.make_graph(
        kept,
        "colors",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, ["n", 4, 2, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", 64])],
        [
            numpy_helper.from_array(value, name)
            for name, value in (
                ("head", HEAD),
                ("white", np.float32(255)),
                ("step", np.float32(0.005)),
                ("zero", np.uint8(0)),
            )
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    golden = Golden(CROPS, by_hand(CROPS).astype(np.float32))
    manifest = Manifest("colors", "person", InputSpec(4, 2), Embedding(64))
    return write_bundle(tmp_path / "colors.reid", manifest, model=graph(), golden=golden)


def run(file: Path, crops: np.ndarray = CROPS) -> np.ndarray:
    compiled = CORE.compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert [sorted(port.get_names()) for port in (*compiled.inputs, *compiled.outputs)] == [["crops"], ["embeddings"]]
    return compiled({"crops": crops})["embeddings"]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".reid")


def test_float32(bundle, tmp_path):
    parity = write_ir(bundle, tmp_path / "out" / "net.xml")
    assert files(tmp_path / "out") == ["net.bin", "net.xml"]
    assert (parity.precision, parity.passed) == ("float32", True)
    np.testing.assert_allclose(run(tmp_path / "out" / "net.xml"), by_hand(CROPS), rtol=1e-5, atol=1e-5)
    one = run(tmp_path / "out" / "net.xml", CROPS[:1])
    np.testing.assert_allclose(one, by_hand(CROPS[:1]), rtol=1e-5, atol=1e-5)


def test_float16_keeps_the_weights_in_half_the_size(bundle, tmp_path):
    write_ir(bundle, tmp_path / "full.xml")
    parity = write_ir(bundle, tmp_path / "half.xml", precision="float16")
    assert parity.precision == "float16"
    expected = by_hand(CROPS, HEAD.astype(np.float16))
    np.testing.assert_allclose(run(tmp_path / "half.xml"), expected, rtol=1e-5, atol=1e-5)
    sizes = [(tmp_path / name).stat().st_size for name in ("full.bin", "half.bin")]
    assert sizes[0] - sizes[1] >= HEAD.nbytes // 2


def test_int8_is_the_quantised_graph(bundle, tmp_path):
    with pytest.raises(RuntimeMissing, match=r"was not quantised[\s\S]*to do: reid quantize .*colors\.reid --calib"):
        write_ir(bundle, tmp_path / "int8.xml", precision="int8")
    quantized = replace_files(bundle, {INT8_MODELS["cpu"]: graph(rounded=True)})
    parity = write_ir(quantized, tmp_path / "int8.xml", precision="int8")
    assert (parity.precision, parity.passed) == ("int8", True)
    expected = np.rint(CROPS.mean(axis=(1, 2), dtype=np.float64) / 255 / 0.005) * 0.005 @ HEAD.astype(np.float64)
    np.testing.assert_allclose(run(tmp_path / "int8.xml"), expected, rtol=1e-4, atol=1e-5)
    assert "FakeQuantize" in (tmp_path / "int8.xml").read_text()
    assert np.abs(expected - by_hand(CROPS)).max() > 1e-4  # else nothing would tell it from the float graph


def test_what_does_not_give_the_golden_embeddings_gets_no_name(bundle, tmp_path, monkeypatch):
    def other(file, folder, **_):
        model = CORE.read_model(str(file))
        (head,) = [node for node in model.get_ops() if node.get_friendly_name() == "head"]
        head.output(0).replace(openvino.opset13.constant(1.1 * HEAD).output(0))
        openvino.save_model(model, str(folder / "model.xml"), compress_to_fp16=False)

    monkeypatch.setattr(openvino_ir, "_save", other)
    text = r"IR of colors\.reid does not give its golden embeddings; nothing was written\n  got: max rel 1\.0e-01"
    with pytest.raises(ModelError, match=text):
        write_ir(bundle, tmp_path / "net.xml")
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["net.xml", "net.bin"])
def test_files_that_are_there_stay_unless_told(bundle, tmp_path, name):
    (tmp_path / name).write_bytes(b"dear")
    with pytest.raises(OutputError, match=rf"{name} already exists"):
        write_ir(bundle, tmp_path / "net.xml")
    assert files(tmp_path) == [name]
    write_ir(bundle, tmp_path / "net.xml", overwrite=True)
    np.testing.assert_allclose(run(tmp_path / "net.xml"), by_hand(CROPS), rtol=1e-5, atol=1e-5)


def test_names_precisions_and_graphs_that_cannot_be(bundle, tmp_path):
    with pytest.raises(ConfigError, match=r"got: net\.bin\n  expected: NAME\.xml; NAME\.bin is written beside it"):
        write_ir(bundle, tmp_path / "net.bin")
    with pytest.raises(RuntimeMissing, match=r"openvino does not run this bundle in bfloat16 here"):
        write_ir(bundle, tmp_path / "net.xml", precision="bfloat16")
    broken = write_bundle(bundle.path, bundle.manifest, model=b"no graph", golden=bundle.golden(), overwrite=True)
    with pytest.raises((ModelError, BundleError), match=r"cannot write .*model\.onnx as IR\n  got: "):
        write_ir(broken, tmp_path / "net.xml")
    assert files(tmp_path) == []
