"""ResNets as torchvision, timm and the authors of IBN-Net publish them: ImageNet weights to begin a training with."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from reidkit.architecture import HeadSpec, ModelSpec
from reidkit.checkpoints.reading import Assumption, Reading, Sizes, renamed, sizes_of
from reidkit.checkpoints.resnet_keys import infer_resnet, is_resnet
from reidkit.errors import ModelError
from reidkit.types import InputSpec, Task

DIALECTS = ("torchvision",)


def detect(sizes: Sizes, *, dialect: str | None = None) -> str | None:
    """Why these names are those of a plain ResNet; None where they are not."""
    if "conv1.0.weight" in sizes and any(name.startswith("layer1.0.") for name in sizes):
        return "a deep stem, conv1.0.weight, and layer1.0"
    return "conv1.weight and layer1.0 of a ResNet" if is_resnet(sizes) else None


def read(
    tensors: Mapping[str, Tensor], *, config: Path | None = None, dialect: str | None = None, task: Task = "person"
) -> Reading:
    """Understands the weights of a plain ResNet.

    Args:
        tensors: by the names of the file.
        config: there is none.
        dialect: no more than one.
        task: what the network is to tell apart, which changes nothing here.

    Raises:
        ModelError: a relative of the ResNet that reidkit does not have, or a config.
    """
    if config is not None:
        raise ModelError("A plain ResNet takes no config", got=config, fix="leave --config out; use --set")
    sizes = sizes_of(tensors)
    if "conv1.0.weight" in sizes:
        raise ModelError(
            "The file holds a ResNet with a deep stem (ResNet-D or ResNeSt), which reidkit does not have",
            got="conv1.0.weight",
            expected="conv1.weight, of 7x7",
        )
    backbone = replace(infer_resnet(sizes), last_stride=2, max_pool="pad")
    dropped = [name for name in sizes if name in ("fc.weight", "fc.bias")]
    names = renamed((name for name in sizes if name not in dropped), lambda name: f"backbone.{name}")
    return Reading(
        dialect="torchvision",
        spec=ModelSpec(backbone, HeadSpec(pooling="average", neck=False)),
        input=InputSpec(256, 128, resize="bilinear"),
        identities=None,
        tensors={canonical: tensors[name] for canonical, name in names.items()},
        names=names,
        findings=(f"{len(dropped)} tensors of the classifier were left out: {', '.join(dropped)}",) if dropped else (),
        assumptions=(
            Assumption(
                "ImageNet weights, not trained for re-identification: starting weights; "
                "average pooling, no neck, crops of 256 x 128",
                "input.height=224",
            ),
            Assumption("last stride 2, as they were trained", "backbone.last_stride=1"),
            Assumption("ImageNet's mean", "input.mean=[0.5, 0.5, 0.5]"),
            Assumption("ImageNet's standard deviation", "input.std=[0.5, 0.5, 0.5]"),
            Assumption("no anti-aliased down-sampling: timm's resnetaa and resnetblur have the same names"),
        ),
    )
