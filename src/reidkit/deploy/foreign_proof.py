"""What anyone's network has to show before it becomes a bundle, whatever it is written in.

One image input and one embedding; and, with the pre-processing inside, the embeddings that the file itself gives for
pixels that NumPy has pre-processed in float64, crop by crop. It takes any batch where runs have shown that it can.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float, Float32, UInt8

import reidkit
from reidkit.bundle import Bundle, Golden, IrGraph, write_bundle
from reidkit.deploy.foreign_doubts import embedding_doubts, scale_doubts
from reidkit.errors import ModelError
from reidkit.manifest import Embedding, LicenceClass, Manifest, Provenance
from reidkit.types import InputSpec, Precision, Progress, Task

Layout = Literal["nchw", "nhwc"]
Words = Callable[[BaseException], str]
"""What to tell of an engine's own error."""
Run: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""A graph with pre-processing inside, opened: crops to embeddings."""

Graph = TypeVar("Graph", bytes, IrGraph)

_CHANNEL_AXIS: dict[Layout, int] = {"nchw": 1, "nhwc": 3}

_BATCHES = (1, 2, 3, 5)
"""Batch sizes that a graph must show to take before it is said to take any."""

_TOLERANCES: dict[Precision, float] = {
    "float32": 1e-3,
    "tf32": 2e-2,
    "float16": 2e-2,
    "bfloat16": 2e-2,
    "int8": 1e-1,
}
"""Largest distance between two embeddings of one crop, as a fraction of their length. In floats rounding stays far
below (1e-6 and 1e-3); in int8, a value that other kernels round the other way was seen to move an embedding by 0.06.
The embedding of another crop is far above."""

_UNIT = 1e-3  # how far from 1 the length of a normalised embedding may be


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The one input of a network that takes images.

    Attributes:
        name: of the value.
        layout: order of its axes.
        dtype: float32 or float16.
        batch: the static batch size, or None where any is declared to do.
        height: pixels, or None where dynamic.
        width: pixels, or None where dynamic.
    """

    name: str
    layout: Layout
    dtype: np.dtype
    batch: int | None
    height: int | None
    width: int | None


@dataclass(frozen=True, slots=True)
class Imported:
    """A foreign network, taken in.

    Attributes:
        bundle: written and opened.
        notes: what the user should know, a sentence or two each.
    """

    bundle: Bundle
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """What a network gave under a name."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype} {self.shape}"


def find_layout(dims: Sequence[int | None], asked: Layout | None, what: str, file: Path) -> Layout:
    """The order of an input's axes, by the one that has three channels.

    Args:
        dims: four sizes, None for a dynamic one.
        asked: the order that was stated; None tries both.
        what: the input in words, for the messages.
        file: it came from, likewise.

    Raises:
        ModelError: no axis has three channels, or either may.
    """
    layouts: list[Layout] = [asked] if asked else ["nchw", "nhwc"]
    certain: list[Layout] = [layout for layout in layouts if dims[_CHANNEL_AXIS[layout]] == 3]
    possible: list[Layout] = certain or [layout for layout in layouts if dims[_CHANNEL_AXIS[layout]] is None]
    if len(possible) == 1:
        return possible[0]
    if possible:
        fix = "say which it is: --layout nchw or --layout nhwc"
        raise ModelError(f"{file} does not say which axis of its input holds the channels", got=what, fix=fix)
    axes = " or ".join(f"axis {_CHANNEL_AXIS[layout]} ({layout})" for layout in layouts)
    raise ModelError(f"{file} does not take images of three channels", got=what, expected=f"3 channels on {axes}")


def check_size(image: ImageInput, spec: InputSpec, file: Path) -> None:
    """Refuses a spec of another size than the file states.

    Raises:
        ModelError: says both.
    """
    wanted = (image.height, image.width)
    if any(have not in (None, asked) for have, asked in zip(wanted, (spec.height, spec.width), strict=True)):
        expected = "x".join("any" if side is None else str(side) for side in wanted)
        raise ModelError(
            f"{file} takes crops of another size",
            got=f"{spec.height}x{spec.width} (height x width)",
            expected=expected,
            fix=f"ask for {expected}, or export the network at {spec.height}x{spec.width}",
        )


def network_input(
    crops: UInt8[np.ndarray, "n height width 3"], spec: InputSpec, image: ImageInput
) -> Float[np.ndarray, "n _ _ _"]:
    """Pre-processes crops as the spec says, in float64 numpy, to what the bare network takes.

    It shares nothing with the nodes that go inside the graph, so that each can prove the other.
    """
    pixels = crops.astype(np.float64)
    if spec.color == "bgr":
        pixels = pixels[..., ::-1]
    values = (pixels / spec.scale - np.array(spec.mean)) / np.array(spec.std)
    if image.layout == "nchw":
        values = values.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values, dtype=image.dtype)


def embed_one_by_one(
    run: Callable[[np.ndarray, Sequence[str]], Mapping[str, object]],
    names: Sequence[str],
    image: ImageInput,
    pixels: np.ndarray,
    *,
    output: str | None,
    file: Path,
    words: Words,
    progress: Progress,
) -> tuple[Output, Float32[np.ndarray, "n dim"]]:
    """What the file itself gives, crop by crop; a static batch is filled up with copies of the crop.

    Args:
        run: the file, opened: a batch of normalised pixels and names of outputs to what each gives.
        names: of all outputs.
        image: its input.
        pixels: of all crops, as `network_input` gives them.
        output: name of the one that holds the embeddings; None takes the one that can.
        file: for the messages.
        words: for the engine's errors.
        progress: over the crops.

    Raises:
        ModelError: no such output, none or several that may be embeddings, or the network does not run on the crops.
    """
    if output is not None and output not in names:
        raise ModelError(f"{file} has no output {output!r}", expected=f"one of {', '.join(names)}")
    wanted = list(names) if output is None else [output]
    rows, chosen = [], None
    for i, crop in enumerate(pixels):
        try:
            results = run(np.repeat(crop[None], image.batch or 1, axis=0), wanted)
        except Exception as error:  # engines' errors have no base class of their own
            size = f"{' x '.join(map(str, crop.shape))} ({image.layout[1:]})"
            raise ModelError(
                f"{file} cannot be run on a crop of {size}",
                got=words(error),
                fix="check that size and layout are those the network was made for",
            ) from error
        if chosen is None:
            arrays = {name: value for name, value in results.items() if isinstance(value, np.ndarray)}
            outputs = [Output(name, value.dtype, value.shape) for name, value in arrays.items()]
            chosen = _choose_output(outputs, image.batch or 1, file)
            wanted = [chosen.name]
        rows.append(np.asarray(results[chosen.name], dtype=np.float32)[0].reshape(-1))
        progress(i + 1, len(pixels) + 1)
    assert chosen is not None
    return chosen, np.stack(rows)


def _choose_output(outputs: Sequence[Output], batch: int, file: Path) -> Output:
    fitting = [o for o in outputs if o.dtype.kind == "f" and o.shape[:1] == (batch,) and _dim(o.shape) is not None]
    if len(fitting) == 1:
        return fitting[0]
    names = "; ".join(map(str, fitting or outputs))
    if fitting:
        fix = f"say which one with --output, for example --output {fitting[0].name}"
        raise ModelError(f"{file} has several outputs that may be the embedding", got=names, fix=fix)
    raise ModelError(
        f"{file} gives no embedding",
        got=names,
        expected=f"floats of shape ({batch}, dim) or ({batch}, dim, 1, 1) for a batch of {batch}",
        fix="export the network up to its embedding: after the pooling, before anything that detects or classifies",
    )


def _dim(shape: tuple[int, ...]) -> int | None:
    """Width of an embedding (n, dim), (n, dim, 1, 1) or (n, 1, 1, dim); None for any other shape, or a width of 1."""
    match shape:
        case (_, dim) | (_, dim, 1, 1) | (_, 1, 1, dim) if dim > 1:
            return dim
    return None


def check_finite(
    embeddings: Float32[np.ndarray, "n dim"], weights: Iterable[tuple[str, np.ndarray]], file: Path
) -> None:
    """Refuses embeddings that are NaN or infinite, and names the weights that are.

    Args:
        embeddings: of the golden crops.
        weights: of floating point, by name.
        file: for the message.

    Raises:
        ModelError: says how many, and why as far as it can be seen.
    """
    finite = np.asarray(np.isfinite(embeddings).all(axis=1))
    if finite.all():
        return
    broken = [name for name, values in weights if not np.isfinite(values).all()]
    fix = "check scale, mean and std: numbers that large overflow in the network, in float16 first"
    if broken:
        fix = f"export the network again: its weights hold NaN or infinite values ({', '.join(broken[:5])})"
    raise ModelError(
        f"{file} gives NaN or infinite embeddings",
        got=f"on {int((~finite).sum())} of {len(finite)} golden crops",
        expected="finite numbers",
        fix=fix,
    )


def with_largest_batch(
    free: Iterable[Callable[[], Graph | None]],
    fixed: Callable[[], Graph],
    open_graph: Callable[[Graph], Run],
    *,
    image: ImageInput,
    golden: Golden,
    precision: Precision,
    file: Path,
    words: Words,
) -> tuple[Graph, int | None, list[str]]:
    """The graph with pre-processing inside: for any batch where that is proven, else for the batch it was made for.

    Args:
        free: ways to make it take any batch, in the order in which they are tried; None where one does not apply.
        fixed: makes it take the batch that it was made for.
        open_graph: on the engine.
        image: its input.
        golden: what it has to give.
        precision: of its arithmetic.
        file: for the messages.
        words: for the engine's errors.

    Returns:
        The graph, the only batch that it takes or None for any, and what is to be told of that.

    Raises:
        ModelError: not even a batch of the size it was made for gives the golden embeddings.
    """
    made_for = image.batch or 1
    tolerance = _TOLERANCES[precision]
    reason = None
    for make in free:
        try:
            graph = make()
            if graph is None:
                continue
            reason = _disagreement(open_graph(graph), golden, _BATCHES, tolerance, words)
        except ModelError:
            raise
        except Exception as error:
            reason = words(error)
            continue
        if reason is None:
            shown = ", ".join(map(str, _BATCHES))
            note = (
                f"The graph was made for batches of {made_for}; now it takes any, as runs of {shown} crops have shown."
            )
            return graph, None, [] if image.batch is None else [note]
    graph = fixed()
    try:
        mismatch = _disagreement(open_graph(graph), golden, (made_for,), tolerance, words)
    except Exception as error:
        mismatch = words(error)
    if mismatch is not None:
        raise ModelError(
            f"{file} does not give the same embeddings with its pre-processing inside",
            got=mismatch,
            expected="what the file itself gives for each crop alone",
            fix="export the network in evaluation mode: dropout depends on chance, batch statistics on neighbours",
        )
    note = f"The graph takes batches of {made_for} only, and was left so. Made to take any, it fails: {reason}."
    return graph, made_for, [note]


def _disagreement(run: Run, golden: Golden, batches: Sequence[int], tolerance: float, words: Words) -> str | None:
    """Why a graph with pre-processing inside is not as good as the golden embeddings; None when it is."""
    norms = np.linalg.norm(golden.embeddings, axis=1)
    allowed = tolerance * np.maximum(norms, 1e-3 * norms.max())
    for batch in batches:
        # Every crop takes part, and the last batch is filled up from the front.
        for start in range(0, len(golden.crops), batch):
            rows = np.arange(start, start + batch) % len(golden.crops)
            try:
                got = run(golden.crops[rows])
            except Exception as error:
                return f"on a batch of {batch}, {words(error)}"
            expected = golden.embeddings[rows]
            if got.shape != expected.shape:
                return f"a batch of {batch} gives embeddings of shape {got.shape}, not {expected.shape}"
            distance = np.linalg.norm(got.astype(np.float64) - expected, axis=1)
            if not (distance <= allowed[rows]).all():  # a NaN is no agreement
                worst = float((distance / np.maximum(norms[rows], np.finfo(np.float32).tiny)).max())
                return (
                    f"in a batch of {batch}, an embedding is {worst:.2g} of its length away from that of the crop alone"
                )
    return None


def write_foreign(
    out: Path,
    graph: bytes | IrGraph,
    golden: Golden,
    *,
    spec: InputSpec,
    batch: int | None,
    precision: Precision,
    source: str,
    source_sha256: str,
    framework: str,
    task: Task,
    licence: LicenceClass,
    notes: Sequence[str],
    overwrite: bool,
) -> Imported:
    """Writes a network that was proven, and says what is strange about it.

    Args:
        out: the bundle.
        graph: with pre-processing inside.
        golden: crops, and what the file itself gave for them.
        spec: size and pre-processing.
        batch: the only one that it takes, or None for any.
        precision: of its arithmetic.
        source: name of the file or files.
        source_sha256: of them.
        framework: that gave the golden embeddings, with its version.
        task: what it tells apart.
        licence: class of licence of the weights.
        notes: so far.
        overwrite: replace a bundle that is already there.

    Raises:
        OutputError: the place is taken or cannot be written to.
    """
    embeddings = golden.embeddings
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    manifest = Manifest(
        name=out.stem,
        task=task,
        input=spec,
        embedding=Embedding(embeddings.shape[1], normalized=bool((np.abs(lengths - 1) <= _UNIT).all())),
        batch=batch,
        precision=precision,
        licence=licence,
        provenance=Provenance(
            source=source,
            source_sha256=source_sha256,
            framework=framework,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            reidkit=reidkit.__version__,
        ),
    )
    bundle = write_bundle(out, manifest, model=graph, golden=golden, overwrite=overwrite)
    return Imported(bundle, (*notes, *scale_doubts(spec), *embedding_doubts(embeddings)))
