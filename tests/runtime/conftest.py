from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from reidkit.architecture import ModelSpec
from reidkit.bundle import Bundle, Golden, write_bundle
from reidkit.manifest import Embedding, Manifest
from reidkit.types import InputSpec

MakeBundle = Callable[..., Bundle]


def mean_color_graph(height: int, width: int, batch: int | None) -> bytes:
    """A graph whose embedding is the mean colour of a crop, so that anybody can say what it must be."""
    rows = "n" if batch is None else batch
    nodes = [
        helper.make_node("Cast", ["crops"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["embeddings"], axes=[1, 2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "mean_color",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, [rows, height, width, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [rows, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """Writes `mean.reid`, 4 x 2 pixels, whose embedding is the mean colour of a crop."""

    def make(*, batch: int | None = None, model: bytes | None = None, weights: bytes | None = None) -> Bundle:
        crops = np.random.default_rng(0).integers(0, 256, (batch or 3, 4, 2, 3), dtype=np.uint8)
        return write_bundle(
            tmp_path / "mean.reid",
            Manifest(
                "mean",
                "person",
                InputSpec(4, 2),
                Embedding(3),
                batch=batch,
                architecture=None if weights is None else ModelSpec(),
            ),
            model=mean_color_graph(4, 2, batch) if model is None else model,
            golden=Golden(crops, crops.mean(axis=(1, 2)).astype(np.float32)),
            weights=weights,
        )

    return make
