"""What every engine does the same: say what it is, check its crops, split them where the graph's batch is fixed."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from reidkit.bundle import INT8_MODELS, Bundle
from reidkit.errors import InputError, RuntimeMissing
from reidkit.manifest import Manifest
from reidkit.types import EmbedderSpec, Precision, Via

CROPS, EMBEDDINGS = "crops", "embeddings"
"""What a graph calls its input and its output."""

Hint = Literal["latency", "throughput"]
"""What OpenVINO arranges its streams and threads for: one call at a time, or as many crops a second as there can be."""

Optimization = Literal["none", "basic", "extended", "all"]
"""How far ONNX Runtime may rewrite a graph before it runs it."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How an engine is to be opened.

    Attributes:
        runtime: its name.
        device: in its own words.
        threads: that one call may use on the processor; None leaves it to the engine.
        precision: of the arithmetic; None takes what there is: the graph's own, or that of the engine that was built.
        via: how the network came to the builder of an engine: "network" or "parser"; None takes what there is.
        hint: what to be fast at, of engines that can be told; None is latency.
        optimization: of the graph, of engines that can be told; None is all there is.
    """

    runtime: str
    device: str
    threads: int | None = None
    precision: Precision | None = None
    via: Via | None = None
    hint: Hint | None = None
    optimization: Optimization | None = None


class RunnableGraph(NamedTuple):
    """What a processor's engine runs: a file, the precision of its arithmetic, and its sha256 where it is quantised."""

    file: Path
    precision: Precision
    build: str | None


def runnable_graph(bundle: Bundle, opening: Opening, *lower: Precision) -> RunnableGraph:
    """The graph of a bundle that computes in the precision asked for: its own, or the quantised one.

    Args:
        bundle: with its graphs.
        opening: with the precision; None takes the graph's own.
        lower: precisions in which the engine runs a float32 graph, beside its own.

    Raises:
        RuntimeMissing: there is no such graph, and the engine does not run another in it; says how to quantise.
    """
    own = bundle.manifest.precision
    if opening.precision != "int8" or own == "int8":
        known = (own, *lower) if own == "float32" else (own,)
        return RunnableGraph(bundle.model, require_precision(opening, *known), None)
    quantized = bundle.int8_model("cpu")
    if quantized is None:
        command = f"reid quantize {shlex.quote(str(bundle.path))} --calibration DIR"
        raise RuntimeMissing(
            f"{bundle.path.name} was not quantised, so {opening.runtime} cannot run it in int8",
            expected=f"a bundle with {INT8_MODELS['cpu']}",
            fix=command if bundle.graph_format == "onnx" else "import the INT8 IR of the same network",
        )
    return RunnableGraph(quantized, "int8", bundle.manifest.files[quantized.name])


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


def engine_words(error: BaseException) -> str:
    """The part of an engine's message that people can use.

    OpenVINO begins with the places in its own sources, and then says what is wrong in one line or several; of other
    engines the first line says it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from ", "Check '"))]
    text = " ".join(told) if told != lines else "".join(lines[:1])
    text = text or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"


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
