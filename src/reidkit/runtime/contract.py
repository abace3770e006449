"""What every engine does the same: say what it is, check its crops, split them where the graph's batch is fixed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from reidkit.errors import InputError, RuntimeMissing
from reidkit.manifest import Manifest
from reidkit.types import EmbedderSpec, Precision, Via

CROPS, EMBEDDINGS = "crops", "embeddings"
"""What a graph calls its input and its output."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How an engine is to be opened.

    Attributes:
        runtime: its name.
        device: in its own words.
        threads: that one call may use on the processor; None leaves it to the engine.
        precision: of the arithmetic; None takes what there is: the graph's own, or that of the engine that was built.
        via: how the network came to the builder of an engine: "network" or "parser"; None takes what there is.
    """

    runtime: str
    device: str
    threads: int | None = None
    precision: Precision | None = None
    via: Via | None = None


def require_precision(opening: Opening, *known: Precision) -> Precision:
    """The precision asked for, or else the first known one.

    Raises:
        RuntimeMissing: the engine cannot compute in it.
    """
    if opening.precision is None:
        return known[0]
    if opening.precision not in known:
        raise RuntimeMissing(
            f"{opening.runtime} does not run this bundle in {opening.precision} here",
            expected=f"one of {', '.join(known)}",
            fix="choose another precision or runtime",
        )
    return opening.precision


def spec_of(
    manifest: Manifest, *, runtime: str, device: str, precision: Precision | None = None, build: str | None = None
) -> EmbedderSpec:
    """What the graph of a bundle is, opened by an engine; None takes the graph's own precision."""
    return EmbedderSpec(
        input=manifest.input,
        dim=manifest.embedding.dim,
        normalized=manifest.embedding.normalized,
        batch=manifest.batch,
        runtime=runtime,
        precision=precision or manifest.precision,
        device=device,
        build=build,
    )


def check_crops(crops: np.ndarray, spec: EmbedderSpec) -> None:
    """Refuses crops that the graph would misread.

    Raises:
        InputError: another type, rank, size or number of channels than the spec's.
    """
    wanted = (spec.input.height, spec.input.width, 3)
    if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1:] != wanted:
        raise InputError(
            "The crops do not fit the model",
            got=f"{crops.dtype} {crops.shape}",
            expected=f"uint8 (n, {', '.join(map(str, wanted))}), RGB",
            fix="make crops with reidkit.imaging.load_crop",
        )


def run_in_batches(
    crops: UInt8[np.ndarray, "n height width 3"],
    spec: EmbedderSpec,
    run: Callable[[UInt8[np.ndarray, "batch height width 3"]], Float32[np.ndarray, "batch dim"]],
) -> Float32[np.ndarray, "n dim"]:
    """Runs an engine on any number of crops; where its batch is fixed, on so many at a time, the last ones repeated.

    Raises:
        InputError: as `check_crops`.
    """
    check_crops(crops, spec)
    if len(crops) == 0:
        return np.empty((0, spec.dim), dtype=np.float32)
    if spec.batch is None:
        return run(crops)
    parts = []
    for start in range(0, len(crops), spec.batch):
        part = crops[start : start + spec.batch]
        filled = np.concatenate([part, np.repeat(part[-1:], spec.batch - len(part), axis=0)])
        parts.append(run(filled)[: len(part)])
    return np.concatenate(parts)
