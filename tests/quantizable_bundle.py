"""A bundle of three convolutions, quickly made and quickly run, and pictures to calibrate it with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from reidkit.bundle import Bundle, Golden, write_bundle
from reidkit.deploy.quantize.pictures import Pictures
from reidkit.manifest import Embedding, Manifest
from reidkit.types import Crop, InputSpec

INPUT = InputSpec(8, 4)
DIM = 5


def weights() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(3)
    shapes = {"stem.weight": (6, 3, 3, 3), "one.weight": (6, 6, 3, 3), "two.weight": (DIM, 6, 1, 1)}
    drawn = {name: rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    drawn |= {name.replace("weight", "bias"): rng.normal(size=shape[0]) / 4 for name, shape in shapes.items()}
    return {name: values.astype(np.float32) for name, values in drawn.items()} | {"scale": np.float32(1 / 128)}


def nodes() -> list[onnx.NodeProto]:
    def conv(source: str, name: str, result: str) -> onnx.NodeProto:
        pads = [0] * 4 if name == "two" else [1] * 4
        return helper.make_node("Conv", [source, f"{name}.weight", f"{name}.bias"], [result], pads=pads)

    return [
        helper.make_node("Cast", ["crops"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["x"], perm=[0, 3, 1, 2]),
        conv("x", "stem", "s"),
        helper.make_node("Relu", ["s"], ["a"]),
        conv("a", "one", "b"),
        helper.make_node("Add", ["b", "a"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        conv("d", "two", "e"),
        helper.make_node("GlobalAveragePool", ["e"], ["p"]),
        helper.make_node("Flatten", ["p"], ["embeddings"]),
    ]


def network(
    *,
    batch: int | None = None,
    opset: int = 17,
    changed: Mapping[str, np.ndarray[Any, Any]] | None = None,
    instead: Sequence[onnx.NodeProto] | None = None,
    domains: Sequence[str] = (),
) -> bytes:
    rows = "n" if batch is None else batch
    graph = helper.make_graph(
        nodes() if instead is None else instead,
        "small",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, [rows, INPUT.height, INPUT.width, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [rows, DIM])],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in {**weights(), **(changed or {})}.items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=7).SerializeToString(deterministic=True)


def write(path: Path, *, batch: int | None = None, model: bytes | None = None, **options: Any) -> Bundle:
    golden = Golden(np.zeros((batch or 2, 8, 4, 3), np.uint8), np.ones((batch or 2, DIM), np.float32))
    manifest = Manifest("small", "person", INPUT, Embedding(DIM), batch=batch)
    return write_bundle(path, manifest, model=model or network(batch=batch, **options), golden=golden)


def write_pictures(root: Path, count: int = 12) -> Pictures:
    """Pictures of the size of the input, so that nothing is resized; four identities, two cameras."""
    rng = np.random.default_rng(7)
    root.mkdir()
    crops = []
    for i in range(count):
        path = root / f"{i:03}.png"
        Image.fromarray(rng.integers(0, 256, (INPUT.height, INPUT.width, 3), dtype=np.uint8)).save(path)
        crops.append(Crop(path, i % 4, i // 4 % 2))
    return Pictures(tuple(crops), root, "made up", "train")
