"""Test-time augmentation: the embedding of a crop together with those of other views of it.

Views are made of uint8 crops before an engine sees them, and go through it as crops of their own: each is pre-processed
once. fast-reid's mirrored picture is normalised a second time, because its first pass changes the caller's tensor in
place.
"""

import math
from collections.abc import Iterator, Sequence
from typing import get_args

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from reidkit.errors import ConfigError, unknown_name
from reidkit.imaging import resize
from reidkit.manifest import Tta
from reidkit.runtime.contract import check_crops
from reidkit.types import Embedder, EmbedderSpec, InputSpec

SCALES: tuple[float, ...] = (0.95, 1.0, 1.05)
"""What "multiscale" looks at: as far out as in, which helped every network that was measured (docs/benchmarks.md)."""

_SMALLEST, _LARGEST = 0.25, 4.0


class MultiViewEmbedder:
    """An embedder whose answer is the mean over several views of a crop, all of the same weight.

    The embeddings are averaged as the network gives them, which is how the field reports accuracy "with flip"
    (fast-reid, and the public baselines before it); the cosine scales the mean. Where the network gives unit length,
    the mean of all views is scaled to unit length once, at the end. Flip and scales together are therefore the mean
    over every scale seen from both sides, and not a mean of means that were scaled before.

    Views are made one after the other: memory holds the crops, two views of them at most, and a sum of embeddings in
    float64.

    Args:
        embedder: any open model. A crop costs it one call a view.
        scales: views of each crop: 1 is the crop itself, above 1 a closer look at its middle, below 1 one from
            farther away; see `at_scale`.
        flip: whether each of them is also seen mirrored left to right.

    Raises:
        ConfigError: no scale, or one that is out of range.
    """

    def __init__(self, embedder: Embedder, *, scales: Sequence[float] = (1.0,), flip: bool = False) -> None:
        for scale in scales:
            _check_scale(scale)
        if not scales:
            raise ConfigError("There is no scale to look at", got="none", expected="at least one, such as 1.0")
        self._embedder = embedder
        self._scales = tuple(scales)
        self._flip = flip

    @property
    def spec(self) -> EmbedderSpec:
        """That of the embedder inside, whose promise of unit length is kept."""
        return self._embedder.spec

    def embed(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        """Maps crops to embeddings; see `reidkit.types.Embedder`.

        Where the embeddings of the views cancel each other out the mean is zero and stays so: it has no direction, and
        a ranking by cosine will name it.
        """
        check_crops(crops, self.spec)
        total = np.zeros((len(crops), self.spec.dim))  # in float64 no sum overflows, and the mean is rounded once
        with np.errstate(invalid="ignore"):  # what is not finite stays so, for a ranking to name it
            for view in self._views(crops):
                total += self._embedder.embed(view)
            if not self.spec.normalized:
                return (total / (len(self._scales) * (1 + self._flip))).astype(np.float32)
            lengths = np.linalg.norm(total, axis=1, keepdims=True)
            return np.divide(total, lengths, out=np.zeros_like(total), where=lengths != 0).astype(np.float32)

    def _views(self, crops: np.ndarray) -> Iterator[np.ndarray]:
        """Each an array of its own: what an engine does to it harms neither the caller's crops nor the next view."""
        for scale in self._scales:
            seen = crops.copy()
            if scale != 1:
                for place, crop in enumerate(crops):
                    seen[place] = at_scale(crop, scale, self.spec.input)
            if self._flip:
                yield seen[:, :, ::-1].copy()
            yield seen


def at_scale(
    crop: UInt8[np.ndarray, "height width 3"], scale: float, spec: InputSpec
) -> UInt8[np.ndarray, "height width 3"]:
    """The crop as a camera would see it with its focal length times `scale`, in the same number of pixels.

    Above 1 the middle of the crop fills the picture. Below 1 the crop becomes smaller, and its edge pixels are repeated
    around it. What is cut off or added is a whole number of pixels, the same on opposite sides. At 1 it is the crop,
    bit for bit.

    Args:
        crop: of the spec's size.
        scale: 0.25 to 4.
        spec: whose filter resizes; see `reidkit.imaging.resize`.

    Raises:
        ConfigError: the scale is out of range.
    """
    _check_scale(scale)
    down, right = (_margin(side, scale) for side in crop.shape[:2])
    if down < 0 or right < 0:
        return resize(Image.fromarray(np.pad(crop, ((-down, -down), (-right, -right), (0, 0)), mode="edge")), spec)
    height, width = crop.shape[:2]
    return resize(Image.fromarray(crop[down : height - down, right : width - right]), spec)


def with_tta(embedder: Embedder, tta: Tta) -> Embedder:
    """The embedder with a test-time augmentation around it; for "none", the embedder.

    Raises:
        ConfigError: there is no such augmentation.
    """
    match tta:
        case "none":
            return embedder
        case "flip":
            return MultiViewEmbedder(embedder, flip=True)
        case "multiscale":
            return MultiViewEmbedder(embedder, scales=SCALES)
        case "flip+multiscale":
            return MultiViewEmbedder(embedder, scales=SCALES, flip=True)
        case _:
            raise unknown_name("test-time augmentation", tta, get_args(Tta))


def _margin(side: int, scale: float) -> int:
    """Pixels to cut off at either end of a side, or to add where negative; at least one is left."""
    return min(round(side * (1 - 1 / scale) / 2), (side - 1) // 2)


def _check_scale(scale: float) -> None:
    if not (math.isfinite(scale) and _SMALLEST <= scale <= _LARGEST):
        raise ConfigError("A scale is out of range", got=scale, expected=f"{_SMALLEST:g} to {_LARGEST:g}")
