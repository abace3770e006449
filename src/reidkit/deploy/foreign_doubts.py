"""What looks wrong about a foreign network and what was said of its pixels, though nothing proves it wrong."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from reidkit.types import InputSpec

_NARROW, _WIDE = 0.1, 256.0
"""Bounds of the range that normalised pixels may have: unit variance gives about 4, no normalisation at all 255."""

_ALIKE = 0.9999  # cosine above which embeddings tell nothing apart


def embedding_doubts(embeddings: Float32[np.ndarray, "n dim"]) -> list[str]:
    """Notes on golden embeddings that cannot be right, though nothing is wrong with the graph."""
    lengths = np.linalg.norm(embeddings, axis=1)
    if lengths.min() == 0:
        return [
            f"{int((lengths == 0).sum())} of {len(lengths)} golden crops have an embedding of length zero, and so no "
            "cosine: is the pre-processing right?"
        ]
    unit = embeddings / lengths[:, None]
    if (least := float((unit @ unit.T).min())) > _ALIKE:
        return [
            f"All golden crops have nearly the same embedding (cosine {least:.6f} or more), though they look nothing "
            "alike: is the pre-processing right?"
        ]
    return []


def scale_doubts(spec: InputSpec) -> list[str]:
    """Notes on a mean and std that seem to be of pixels from 0 to 1 where the scale says 0 to 255, or the reverse."""
    low, high = _strangest_range(spec)
    if _is_usual(low, high):
        return []
    note = (
        f"With scale {spec.scale:g}, pixels from 0 to 255 enter the network as {low:.4g} to {high:.4g}, where a few "
        "units around zero are usual"
    )
    for scale in (1.0, 255.0):
        likely = _strangest_range(replace(spec, scale=scale))
        if _is_usual(*likely):
            low, high = likely
            return [f"{note}. Should it be --scale {scale:g}? That would give {low:.4g} to {high:.4g}."]
    return [f"{note}: are scale, mean and std right?"]


def _strangest_range(spec: InputSpec) -> tuple[float, float]:
    """What pixels 0 and 255 become, in the channel where that is least usual."""
    ranges = [((0 - m) / s, (255 / spec.scale - m) / s) for m, s in zip(spec.mean, spec.std, strict=True)]
    return next((found for found in ranges if not _is_usual(*found)), ranges[0])


def _is_usual(low: float, high: float) -> bool:
    width = high - low
    return _NARROW <= width <= _WIDE and low <= width and high >= -width  # zero is in it, or not a width away
