"""The nouns that every room shares.

Axes, here and everywhere: `n` crops, `height` x `width` pixels, `dim` embedding width, `query` x `gallery` distances.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from reidkit.errors import ConfigError, require_one_of

ResizeFilter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
ColorOrder = Literal["rgb", "bgr"]
Task = Literal["person", "vehicle"]
Precision = Literal["float32", "tf32", "float16", "bfloat16", "int8"]
"""Of an engine's arithmetic. "tf32" is float32 whose products are rounded to ten bits, on NVIDIA's tensor cores."""

UNKNOWN_CAMERA = -1
"""`Crop.camid` where the data set does not say: never equal to any camera, so no gallery crop is junk for it."""

DISTRACTOR = -1
"""`Crop.pid` of a gallery crop that shows nobody who is asked for (Market-1501's 0000): it counts as wrong."""

UNKNOWN_IDENTITY = -2
"""`Crop.pid` where nothing says whom a picture shows: neither right nor wrong, so it takes no part in a measurement."""

Via = Literal["network", "parser"]
"""How a network came to an engine's builder: written layer by layer, or as ONNX through its parser."""

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on. Libraries draw nothing; whoever calls them may."""


def no_progress(done: int, total: int) -> None:
    """The progress callback that shows nothing."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a network wants to see, and how a picture becomes that.

    `imaging` resizes to height x width with `resize`, in RGB and uint8. The rest happens inside the graph, per channel:
    reorder to `color`, then `(pixel / scale - mean) / std`, with mean and std in the order of `color`.

    Attributes:
        height: pixels.
        width: pixels.
        resize: Pillow's filter of that name, with its support widened when shrinking.
        color: the order of channels that the network was trained with; the graph's own input is always RGB.
        scale: the divisor of the 0 to 255 pixel values.
        mean: per channel, in units of `pixel / scale`.
        std: per channel, in units of `pixel / scale`.
    """

    height: int
    width: int
    resize: ResizeFilter = "bicubic"
    color: ColorOrder = "rgb"
    scale: float = 255.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        require_one_of("resize filter", self.resize, get_args(ResizeFilter))
        require_one_of("color order", self.color, get_args(ColorOrder))
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ConfigError(
                "The input normalisation cannot be used",
                got=f"mean {self.mean}, std {self.std}",
                expected="three numbers each",
            )
        if not (1 <= self.height <= 8192 and 1 <= self.width <= 8192):
            raise ConfigError(
                "The input size is out of range",
                got=f"{self.height}x{self.width} (height x width)",
                expected="1 to 8192 pixels each",
            )
        numbers = (self.scale, *self.mean, *self.std)
        if not all(np.isfinite(numbers)) or self.scale <= 0 or min(self.std) <= 0:
            raise ConfigError(
                "The input normalisation cannot be used",
                got=f"scale {self.scale}, mean {self.mean}, std {self.std}",
                expected="finite numbers, scale and std above 0",
            )


@dataclass(frozen=True, slots=True)
class EmbedderSpec:
    """What an open embedder is: what it takes, what it gives and where it runs.

    Attributes:
        input: size and resize filter of the crops it takes.
        dim: width of an embedding.
        normalized: whether every embedding has Euclidean length 1.
        batch: the only batch size that its graph takes, or None where any will do. `embed` takes any number of crops
            all the same; a fixed graph runs once per `batch` crops.
        runtime: name of the engine, as `reidkit.load` takes it; where each of several has its batches, all of their
            names, joined by "+".
        precision: of the arithmetic inside; of several, the lowest.
        device: where it runs, in the engine's own words.
        build: sha256 of the engine file, where one was built for this graph and machine; of several engines, one that
            tells which of them runs which batches.
    """

    input: InputSpec
    dim: int
    normalized: bool
    batch: int | None
    runtime: str
    precision: Precision
    device: str
    build: str | None = None


@runtime_checkable
class Embedder(Protocol):
    """An open model: crops in, embeddings out. `evaluate`, `verify`, `bench` and `search` know nothing else.

    `embed` may be called from several threads; whether the calls run side by side or in turn is the engine's affair.
    """

    @property
    def spec(self) -> EmbedderSpec:
        """What it takes, what it gives and where it runs."""
        ...

    def embed(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        """Maps crops (RGB, 0 to 255) of the spec's size to embeddings.

        Raises:
            InputError: the crops have another type, rank, size or number of channels.
        """
        ...


@runtime_checkable
class Timed(Protocol):
    """An embedder on a device that keeps time of its own: what `bench` can ask of it beside wall time."""

    @property
    def device_memory(self) -> int:
        """Bytes of the device that it holds: weights, buffers and scratch."""
        ...

    def device_seconds(self, batch: int, runs: int) -> list[float]:
        """Seconds of the device for each of so many runs of a batch, by its own events.

        Crops and embeddings stay on the device.

        Raises:
            InputError: it does not take such a batch at once.
        """
        ...


@runtime_checkable
class Batched(Protocol):
    """An embedder that runs other kernels for other batches; each of them may be wrong on its own."""

    @property
    def batches(self) -> tuple[int, ...]:
        """One size of crops a call for each set of kernels."""
        ...


@dataclass(frozen=True, slots=True)
class Crop:
    """One picture of one identity, seen by one camera.

    Attributes:
        path: the picture file.
        pid: identity, 0 or above, unique across the whole split; or DISTRACTOR or UNKNOWN_IDENTITY.
        camid: camera, 0 or above; or UNKNOWN_CAMERA.
    """

    path: Path
    pid: int
    camid: int


Subset = Literal["train", "query", "gallery"]
SUBSETS: tuple[Subset, ...] = ("train", "query", "gallery")


@dataclass(frozen=True, slots=True)
class Split:
    """A re-identification data set, divided as its protocol says. Every tuple is sorted by path.

    Attributes:
        format: the parser that read it ("market1501", "folder", ...).
        root: the folder or file it was read from.
        train: crops to learn from.
        query: crops to ask with.
        gallery: crops to be found, distractors included.
        junk: crops that the data set says are neither right nor wrong (Market-1501's -1): ranked nowhere.
        pid_names: how the data set itself writes an identity.
        camera_names: how the data set itself writes a camera.
        variant: which of the data set's own test sets it is, where it has several of one name.
    """

    format: str
    root: Path
    train: tuple[Crop, ...] = ()
    query: tuple[Crop, ...] = ()
    gallery: tuple[Crop, ...] = ()
    junk: tuple[Crop, ...] = ()
    pid_names: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    camera_names: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    variant: str | None = None

    @property
    def name(self) -> str:
        """Format, folder and variant: what a report calls it."""
        name = f"{self.format} {self.root.resolve().name}"
        return name if self.variant is None else f"{name} {self.variant}"

    def subset(self, name: Subset) -> tuple[Crop, ...]:
        """The crops of one subset."""
        return {"train": self.train, "query": self.query, "gallery": self.gallery}[name]
