"""Checkpoints of other projects with random weights, and the files that those projects keep them in."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from numpy.random import Generator
from numpy.typing import NDArray

from foreign_layouts import (
    Entry,
    fastreid_mgn_layout,
    fastreid_resnet_layout,
    timm_resnet_d_layout,
    torchreid_osnet_layout,
    torchreid_resnet50_layout,
    torchvision_resnet_layout,
)

Drawn: TypeAlias = dict[str, NDArray[Any]]


def draw(rng: Generator, layout: Iterable[Entry]) -> Drawn:
    return {entry.name: entry.draw(rng, entry.shape) for entry in layout}


def prefixed(tensors: Mapping[str, NDArray[Any]], prefix: str = "module.") -> Drawn:
    """The tensors as a data-parallel wrapper saves them."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def make_fastreid_resnet(rng: Generator, **options: Any) -> Drawn:
    """Draws a `Baseline` or a distilled student; the options are those of `fastreid_resnet_layout`."""
    return draw(rng, fastreid_resnet_layout(**options))


def make_fastreid_mgn(rng: Generator, **options: Any) -> Drawn:
    """Draws an `MGN`; the options are those of `fastreid_mgn_layout`."""
    return draw(rng, fastreid_mgn_layout(**options))


def make_torchreid_osnet(rng: Generator, **options: Any) -> Drawn:
    """Draws an OSNet; the options are those of `torchreid_osnet_layout`."""
    return draw(rng, torchreid_osnet_layout(**options))


def make_torchreid_resnet50(rng: Generator, *, fc512: bool = False, classes: int = 5) -> Drawn:
    """Draws `resnet50`, or `resnet50_fc512`."""
    return draw(rng, torchreid_resnet50_layout(fc512=fc512, classes=classes))


def make_torchvision_resnet(rng: Generator, *, depth: int, ibn: bool = False, classes: int = 5) -> Drawn:
    """Draws a ResNet as torchvision, timm (its plain ones) and IBN-Net (with `ibn`) name it."""
    return draw(rng, torchvision_resnet_layout(depth=depth, ibn=ibn, classes=classes))


def make_timm_resnet_d(rng: Generator, *, depth: int, classes: int = 5) -> Drawn:
    """Draws timm's ResNet-D (`resnet50d`), whose names differ: a stem of three convolutions, pooled shortcuts."""
    return draw(rng, timm_resnet_d_layout(depth=depth, classes=classes))


def save_fastreid(
    path: Path, tensors: Mapping[str, NDArray[Any]], *, as_numpy: bool = False, extras: Mapping[str, Any] | None = None
) -> None:
    """Writes the file as fast-reid's checkpointer does, its values torch tensors or NumPy arrays."""
    others = {"optimizer": {}, "lr_sched": {}, "warmup_sched": {}, "epoch": 119, "metric": 0.875}
    _save(path, "model", tensors, as_numpy=as_numpy, others={**others, **(extras or {})})


def save_torchreid(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Writes the file as torchreid's `save_checkpoint` does."""
    _save(path, "state_dict", tensors, as_numpy=False, others={"epoch": 60, "rank1": 0.5, "optimizer": {}})


def _save(
    path: Path, key: str, tensors: Mapping[str, NDArray[Any]], *, as_numpy: bool, others: Mapping[str, Any]
) -> None:
    import torch

    values = ((name, tensor if as_numpy else torch.from_numpy(tensor)) for name, tensor in tensors.items())
    torch.save({key: OrderedDict(values), **others}, path)
