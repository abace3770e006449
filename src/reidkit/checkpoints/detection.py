"""Whose checkpoint it is: the registry of sources, and the one place that asks them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from reidkit.checkpoints import fastreid, plain_resnet, torchreid
from reidkit.checkpoints.reading import Reading, Sizes, sizes_of, some
from reidkit.errors import ModelError, unknown_name
from reidkit.types import Task

OWN = "reidkit"


@runtime_checkable
class Detect(Protocol):
    """How a project knows its files."""

    def __call__(self, sizes: Sizes, *, dialect: str | None = None) -> str | None:
        """Why these names are the project's, or those of the dialect that the caller says; None where they are not."""
        ...


@runtime_checkable
class Read(Protocol):
    """How a project's files are understood."""

    def __call__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        config: Path | None = None,
        dialect: str | None = None,
        task: Task = "person",
    ) -> Reading:
        """What the tensors are, given the config beside them, the caller's dialect and the network's task."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """A project whose checkpoints are understood.

    Attributes:
        name: in words.
        dialects: names for `--dialect`.
        detect: whether a file is this project's.
        read: understands such a file.
    """

    name: str
    dialects: tuple[str, ...]
    detect: Detect
    read: Read


SOURCES = (
    Source("fast-reid", fastreid.DIALECTS, fastreid.detect, fastreid.read),
    Source("torchreid", torchreid.DIALECTS, torchreid.detect, torchreid.read),
    Source("torchvision, timm or IBN-Net", plain_resnet.DIALECTS, plain_resnet.detect, plain_resnet.read),
)
"""In the order in which they are asked: the last takes any plain ResNet."""

DIALECTS = (OWN, *(dialect for source in SOURCES for dialect in source.dialects))
"""Every name that `--dialect` takes."""


def source_of(tensors: Mapping[str, Tensor], *, file: str, dialect: str | None = None) -> tuple[Source, str]:
    """The project that a file is from, and why.

    Args:
        tensors: by the names of the file.
        file: its name, for the messages.
        dialect: one of `DIALECTS` that the caller holds it to; the source decides about what is finer.

    Raises:
        ModelError: nobody's that reidkit knows, or not that of `dialect`.
        ConfigError: no such dialect.
    """
    if dialect is not None and dialect not in DIALECTS:
        raise unknown_name("dialect", dialect, DIALECTS)
    sizes = sizes_of(tensors)
    if not sizes:
        raise ModelError(f"{file} holds no weights", expected="named tensors of a network")
    for source in SOURCES:
        if dialect is not None and dialect not in source.dialects:
            continue
        reason = source.detect(sizes, dialect=dialect)
        if reason is not None:
            return source, reason
    if dialect is not None:
        raise ModelError(f"{file} is not of the dialect {dialect}", got=_prefixes(sizes), fix="leave --dialect out")
    raise ModelError(
        f"Cannot tell what network {file} holds",
        got=_prefixes(sizes),
        expected="a ResNet, MGN or OSNet of fast-reid, torchreid, torchvision, timm or reidkit",
        fix="if it is one of timm's, say --architecture timm:NAME; else export it to ONNX, and import that",
    )


def _prefixes(sizes: Sizes) -> str:
    """The first names below each top-level prefix."""
    groups: dict[str, list[str]] = {}
    for name in sizes:
        groups.setdefault(name.split(".")[0], []).append(name)
    shown = [
        f"{names[0]} ({len(names)} tensors {prefix}.*)" if len(names) > 1 else names[0]
        for prefix, names in groups.items()
    ]
    return some(shown, 8)
