"""One small case for each part that a known network can have, with PyTorch's own embeddings as the truth."""

from typing import Any, NamedTuple

import numpy as np
import torch

from reidkit.architecture import HeadSpec, ModelSpec, OSNetSpec, ResNetSpec
from reidkit.models.model import DeployedModel, build_model
from reidkit.types import InputSpec

SMALL = InputSpec(64, 32)
ODD = InputSpec(71, 37, color="bgr", scale=1.0, mean=(103.5, 116.25, 123.7), std=(57.4, 57.1, 58.4))
HIGH = InputSpec(200, 32)
"""Its last map of 13 rows, which MGN cuts into unequal parts."""

_TORCHREID = HeadSpec(pooling="average", embedding_dim=40, embedding_bias=True, relu=True)

CASES: dict[str, tuple[ModelSpec, InputSpec]] = {
    "r18-ibn-a": (ModelSpec(ResNetSpec(ibn="a"), HeadSpec(gem_learned=True, gem_p=2.5)), SMALL),
    "r18-ibn-a-padded": (ModelSpec(ResNetSpec(ibn="a", max_pool="pad", last_stride=2), HeadSpec(pooling="max")), ODD),
    "r18-ibn-b": (ModelSpec(ResNetSpec(ibn="b"), HeadSpec(pooling="average+max", neck=False)), ODD),
    "r18-se": (ModelSpec(ResNetSpec(ibn="none", se=True), HeadSpec(pooling="average", embedding_dim=24)), SMALL),
    "r18-distilled": (ModelSpec(ResNetSpec(ibn="a", preactivation=True), HeadSpec(gem_p=4.0)), SMALL),
    "r50-ibn-nl": (ModelSpec(ResNetSpec(depth=50, non_local="one"), HeadSpec()), SMALL),
    "r50-se-nl": (ModelSpec(ResNetSpec(depth=50, ibn="none", se=True, non_local="half"), HeadSpec()), ODD),
    "osnet": (ModelSpec(OSNetSpec(width=0.25), _TORCHREID), ODD),
    "osnet-ibn": (ModelSpec(OSNetSpec(width=0.25, variant="ibn"), _TORCHREID), SMALL),
    "osnet-ain": (ModelSpec(OSNetSpec(width=0.5, variant="ain"), HeadSpec(pooling="gem")), SMALL),
    "mgn": (ModelSpec(ResNetSpec(), HeadSpec(gem_learned=True, embedding_dim=16), "mgn"), HIGH),
}


class Known(NamedTuple):
    """A known network with drawn weights."""

    spec: ModelSpec
    input: InputSpec
    tensors: dict[str, np.ndarray[Any, Any]]
    crops: np.ndarray[Any, Any]
    embeddings: np.ndarray[Any, Any]


def draw_model(spec: ModelSpec, *, identities: int | None = None) -> Any:
    """A network whose statistics and one-dimensional weights all differ from those it starts with."""
    torch.manual_seed(0)
    model = build_model(spec, identities=identities).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    return model


def known(case: str) -> Known:
    """A case with its weights, two crops and what PyTorch gives for them."""
    spec, input_ = CASES[case]
    model = draw_model(spec)
    crops = np.random.default_rng(1).integers(0, 256, (2, input_.height, input_.width, 3), dtype=np.uint8)
    with torch.inference_mode():
        embeddings = DeployedModel(model, input_).eval()(torch.from_numpy(crops)).numpy()
    return Known(spec, input_, {n: t.numpy() for n, t in model.state_dict().items()}, crops, embeddings)


def distance(got: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    """The largest distance between two embeddings of one crop, as a fraction of their length."""
    assert got.shape == truth.shape
    assert got.dtype == np.float32
    return float((np.linalg.norm(got - truth.astype(np.float64), axis=1) / np.linalg.norm(truth, axis=1)).max())
