"""torchreid's checkpoints: OSNets and ResNets under their own names, and what comes behind them.

Source: KaiyangZhou/deep-person-reid, `torchreid/models`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from reidkit.architecture import HeadSpec, ModelSpec, OSNetSpec, ResNetSpec
from reidkit.checkpoints.osnet_keys import infer_osnet, is_osnet
from reidkit.checkpoints.reading import Assumption, Reading, Sizes, ratio, renamed, sizes_of, some
from reidkit.checkpoints.resnet_keys import infer_resnet, is_resnet
from reidkit.errors import ModelError
from reidkit.types import InputSpec, Task

DIALECTS = ("torchreid",)
_LAYER = re.compile(r"^fc\.(\d+)\.")


def detect(sizes: Sizes, *, dialect: str | None = None) -> str | None:
    """Why these names are torchreid's; None where they are not.

    Only `dialect` tells one of its ResNets that has lost its classifier from a plain ResNet.
    """
    if is_osnet(sizes):
        return "conv1.conv.weight and conv5.conv.weight of an OSNet"
    if is_resnet(sizes) and "classifier.weight" in sizes:
        return "a ResNet with classifier.weight"
    if is_resnet(sizes) and "fc.0.weight" in sizes:
        return "a ResNet with fc.0.weight"
    if is_resnet(sizes) and dialect in DIALECTS:
        return "a ResNet, and --dialect"
    return None


def read(
    tensors: Mapping[str, Tensor], *, config: Path | None = None, dialect: str | None = None, task: Task = "person"
) -> Reading:
    """Understands a checkpoint of torchreid.

    Args:
        tensors: by the names of the file.
        config: torchreid has none that travels with a checkpoint.
        dialect: no more than one.
        task: what the network tells apart, which changes nothing here.

    Raises:
        ModelError: a network that reidkit does not have, or a config.
    """
    if config is not None:
        raise ModelError("A checkpoint of torchreid takes no config", got=config, fix="leave --config out; use --set")
    sizes = sizes_of(tensors)
    if fusion := [name for name in sizes if name.startswith("fc_fusion.")]:
        raise ModelError("The file holds torchreid's resnet50mid, which reidkit does not have", got=some(fusion))
    backbone, assumptions = _backbone(sizes)
    head = _head(sizes, backbone.dim)
    dropped = [name for name in sizes if name.startswith("classifier.")]
    names = renamed((name for name in sizes if name not in set(dropped)), _canonical)
    layer = "heads.bottleneck.0.weight"
    mapped = {canonical: tensors[name] for canonical, name in names.items()}
    if head.embedding_dim and layer in mapped:
        mapped[layer] = mapped[layer].reshape(head.embedding_dim, -1, 1, 1)
    size = Assumption("crops of 256 x 128, torchreid's default", "input.height=384")
    mean = Assumption("ImageNet's mean, torchreid's default", "input.mean=[0.5, 0.5, 0.5]")
    std = Assumption("ImageNet's standard deviation, torchreid's default", "input.std=[0.5, 0.5, 0.5]")
    return Reading(
        dialect="torchreid",
        spec=ModelSpec(backbone, head),
        input=InputSpec(256, 128, resize="bilinear"),
        identities=None,
        tensors=mapped,
        names=names,
        findings=(f"{len(dropped)} tensors of the classifier were left out",) if dropped else (),
        assumptions=(*assumptions, size, mean, std),
    )


def _backbone(sizes: Sizes) -> tuple[ResNetSpec | OSNetSpec, list[Assumption]]:
    if is_osnet(sizes):
        return infer_osnet(sizes), []
    spec = infer_resnet(sizes)
    # resnet50_fc512 is the only one with a layer behind it, and the only one with stride 1.
    stride, why = (1, "resnet50_fc512") if "fc.0.weight" in sizes else (2, "torchreid's ResNets without a layer behind")
    assumption = Assumption(f"last stride {stride}, as in {why}", f"backbone.last_stride={3 - stride}")
    return replace(spec, last_stride=stride, max_pool="pad"), [assumption]


def _head(sizes: Sizes, inputs: int) -> HeadSpec:
    """An average, and behind it nothing; or a layer with a bias, a batch normalisation and a ReLU."""
    layers = {int(found[1]) for name in sizes if (found := _LAYER.match(name))}
    if not layers:
        return HeadSpec(pooling="average", neck=False)
    if layers != {0, 1}:
        raise ModelError(
            "The file has another head than torchreid's networks",
            got=f"fc.{', fc.'.join(str(index) for index in sorted(layers))}",
            expected="fc.0, a layer, and fc.1, a batch normalisation",
        )
    width = ratio(sizes, "fc.0.weight", inputs, "a layer of this network") if "fc.0.weight" in sizes else 512
    return HeadSpec(pooling="average", embedding_dim=width, embedding_bias=True, relu=True)


def _canonical(name: str) -> str:
    if _LAYER.match(name):
        return f"heads.bottleneck.{name.removeprefix('fc.')}"
    return f"backbone.{name}"
