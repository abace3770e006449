"""The whole network: picture in, embedding out; and the pre-processing that goes into the graph with it."""

from typing import TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from reidkit.architecture import ModelSpec, OSNetSpec, ResNetSpec, TimmSpec
from reidkit.models.head import Head, HeadOutputs
from reidkit.models.mgn import MGN
from reidkit.models.osnet import OSNet
from reidkit.models.resnet import ResNet
from reidkit.models.timm_backbone import timm_backbone
from reidkit.types import InputSpec


class EmbeddingModel(nn.Module):
    """Backbone and head. In evaluation its output is the embedding after the neck, not normalised (as fast-reid's).

    Args:
        spec: of the architecture, with one branch.
        identities: in training, the number of classes; None builds no classifier.
    """

    def __init__(self, spec: ModelSpec, *, identities: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.backbone, channels = _backbone(spec)
        self.heads = Head(spec.head, channels, identities)

    def forward(self, x: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n dim"]:
        """Embeddings after the neck."""
        return self.heads(self.backbone(x))[1]

    def training_outputs(self, x: Float[Tensor, "n 3 height width"]) -> tuple[HeadOutputs, ...]:
        """What the losses see of each head; here there is one."""
        return (self.heads.training_outputs(self.backbone(x)),)


Network: TypeAlias = EmbeddingModel | MGN


def build_model(spec: ModelSpec, *, identities: int | None = None) -> Network:
    """Builds a network with fresh weights.

    Args:
        spec: of the architecture.
        identities: number of classes of the classifier; None builds none.

    Raises:
        ConfigError: a backbone of timm that timm does not know, or that cannot be built for this size.
    """
    return MGN(spec, identities) if spec.branches == "mgn" else EmbeddingModel(spec, identities=identities)


def _backbone(spec: ModelSpec) -> tuple[nn.Module, int]:
    """The trunk, and the channels of what it gives."""
    match spec.backbone:
        case ResNetSpec():
            return ResNet(spec.backbone), spec.backbone.dim
        case OSNetSpec():
            return OSNet(spec.backbone), spec.backbone.dim
        case TimmSpec():
            return timm_backbone(spec.backbone, pooled=spec.head.pooling == "own")


class Preprocess(nn.Module):
    """Pixels to network input, as the spec says: channel order, scale, mean and std, n x height x width x 3 to NCHW."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        self.reverse = spec.color == "bgr"
        self.factor: Tensor
        self.offset: Tensor
        self.register_buffer("factor", (1.0 / (spec.scale * std)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("offset", (-mean / std).view(1, 3, 1, 1), persistent=False)

    def forward(self, crops: UInt8[Tensor, "n height width 3"]) -> Float[Tensor, "n 3 height width"]:
        """`(pixel / scale - mean) / std` in the network's channel order."""
        # Contiguous: on turned axes, the exporter writes an average as index arithmetic over the batch.
        return self.normalize(crops.permute(0, 3, 1, 2).float().contiguous())

    def normalize(self, pixels: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 height width"]:
        """The same for RGB pixels, 0 to 255, that are float and NCHW already."""
        if self.reverse:
            pixels = pixels.flip(1)
        return pixels * self.factor + self.offset


class DeployedModel(nn.Module):
    """What is exported: crops (uint8, RGB) in, embeddings out."""

    def __init__(self, model: Network, spec: InputSpec) -> None:
        super().__init__()
        self.preprocess = Preprocess(spec)
        self.model = model

    def forward(self, crops: UInt8[Tensor, "n height width 3"]) -> Float[Tensor, "n dim"]:
        """Embeddings of crops."""
        return self.model(self.preprocess(crops))
