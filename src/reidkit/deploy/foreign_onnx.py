"""From anyone's ONNX embedding network to a bundle, with proof that the two give the same embeddings.

The truth is the file itself, as ONNX Runtime runs it, fed one crop at a time with pixels that numpy has pre-processed
in float64. The bundle's graph, which has the pre-processing inside and takes any batch where it can, must agree with
that before anything is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import EncodeError
from jaxtyping import Float, Float32, UInt8

import reidkit
from reidkit.bundle import Bundle, Golden, check_place, file_sha256, write_bundle
from reidkit.deploy.foreign_graph import ImageInput, Layout, find_image_input
from reidkit.deploy.graph_rewriting import with_free_reshapes, with_preprocessing
from reidkit.errors import ModelError
from reidkit.golden import golden_crops
from reidkit.manifest import Embedding, LicenceClass, Manifest, Provenance
from reidkit.onnx_file import first_line, read_model, too_large
from reidkit.runtime.contract import CROPS, EMBEDDINGS
from reidkit.types import InputSpec, Precision, Progress, Task, no_progress

_BATCHES = (1, 2, 3, 5)
"""Batch sizes that a graph must show to take before it is said to take any."""

_TOLERANCE, _COARSE_TOLERANCE = 1e-3, 2e-2
"""Largest distance between two embeddings of one crop, as a fraction of their length: in float32, and in a network that
computes coarser. Rounding stays far below (1e-6 and 1e-3), the embedding of another crop is far above."""

_NARROW, _WIDE = 0.1, 256.0
"""Bounds of the range that normalised pixels may have: unit variance gives about 4, no normalisation at all 255."""

_ALIKE = 0.9999  # cosine above which embeddings tell nothing apart
_UNIT = 1e-3  # how far from 1 the length of a normalised embedding may be


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
class _Output:
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype} {self.shape}"


def graph_input_size(file: Path | str, *, layout: Layout | None = None) -> tuple[int, int] | None:
    """The height and width that an ONNX file states for its image input, or None where it takes any.

    Raises:
        ModelError: not an ONNX file, or one without exactly one image input.
    """
    file = Path(file)
    image = find_image_input(read_model(file, with_weights=False), file, layout)
    return None if image.height is None or image.width is None else (image.height, image.width)


def import_onnx(
    file: Path | str,
    out: Path | str,
    *,
    spec: InputSpec,
    task: Task = "person",
    licence: LicenceClass = "unknown",
    output: str | None = None,
    layout: Layout | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Imported:
    """Makes a bundle of an ONNX embedding network.

    Args:
        file: the network, from normalised pixels to embeddings; its weights may lie in files beside it.
        out: the bundle, `NAME.reid`.
        spec: size of its crops and the pre-processing it was trained with.
        task: what it tells apart.
        licence: class of licence of the weights.
        output: name of the output that holds the embeddings, where there are several.
        layout: order of its input's axes; None reads it off the graph.
        overwrite: replace a bundle that is already there.
        progress: called as golden crops are embedded.

    Raises:
        ModelError: the file is no ONNX, is damaged, cannot be run, is not one image in and one embedding out, wants
            another size, gives NaN, or does not give the same embeddings with its pre-processing inside.
        OutputError: the place is taken or cannot be written to.
        BundleError: the name of the bundle does not end in `.reid`.
    """
    file, out = Path(file), Path(out)
    check_place(out, overwrite=overwrite)
    model = read_model(file)
    image = find_image_input(model, file, layout)
    _check_size(image, spec, file)
    crops = golden_crops(spec)
    chosen, embeddings = _embed_one_by_one(file, image, network_input(crops, spec, image), output, progress)
    _check_finite(embeddings, model, file)
    golden, precision = Golden(crops, embeddings), _precision(model, image)
    tolerance = _TOLERANCE if precision == "float32" else _COARSE_TOLERANCE
    graph, batch, notes = _with_largest_batch(model, image, chosen, spec, golden, file, tolerance)
    progress(len(crops) + 1, len(crops) + 1)
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
            source=file.name,
            source_sha256=file_sha256(file),
            framework=f"onnxruntime {onnxruntime.__version__}",
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            reidkit=reidkit.__version__,
        ),
    )
    bundle = write_bundle(out, manifest, model=graph, golden=golden, overwrite=overwrite)
    return Imported(bundle, (*notes, *_scale_doubts(spec), *_doubts(embeddings)))


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


def _check_size(image: ImageInput, spec: InputSpec, file: Path) -> None:
    wanted = (image.height, image.width)
    if any(have not in (None, asked) for have, asked in zip(wanted, (spec.height, spec.width), strict=True)):
        expected = "x".join("any" if side is None else str(side) for side in wanted)
        raise ModelError(
            f"{file} takes crops of another size",
            got=f"{spec.height}x{spec.width} (height x width)",
            expected=expected,
            fix=f"ask for {expected}, or export the network at {spec.height}x{spec.width}",
        )


def _embed_one_by_one(
    file: Path, image: ImageInput, pixels: np.ndarray, output: str | None, progress: Progress
) -> tuple[_Output, Float32[np.ndarray, "n dim"]]:
    """What the file itself gives, crop by crop; a static batch is filled up with copies of the crop."""
    try:
        session = _session(str(file))
    except Exception as error:  # onnxruntime's errors have no base class of their own
        raise ModelError(
            f"onnxruntime {onnxruntime.__version__} cannot open {file}",
            got=first_line(error),
            fix="update onnxruntime, or export the network with standard operators of an older opset",
        ) from error
    names = [value.name for value in session.get_outputs()]
    if output is not None and output not in names:
        raise ModelError(f"{file} has no output {output!r}", expected=f"one of {', '.join(names)}")
    wanted = names if output is None else [output]
    rows, chosen = [], None
    for i, crop in enumerate(pixels):
        try:
            results = session.run(wanted, {image.name: np.repeat(crop[None], image.batch or 1, axis=0)})
        except Exception as error:
            size = f"{' x '.join(map(str, crop.shape))} ({image.layout[1:]})"
            raise ModelError(
                f"{file} cannot be run on a crop of {size}",
                got=first_line(error),
                fix="check that size and layout are those the network was made for",
            ) from error
        results = dict(zip(wanted, results, strict=True))
        if chosen is None:
            arrays = {name: value for name, value in results.items() if isinstance(value, np.ndarray)}
            outputs = [_Output(name, value.dtype, value.shape) for name, value in arrays.items()]
            chosen = _choose_output(outputs, image.batch or 1, file)
            wanted = [chosen.name]
        rows.append(np.asarray(results[chosen.name], dtype=np.float32)[0].reshape(-1))
        progress(i + 1, len(pixels) + 1)
    assert chosen is not None
    return chosen, np.stack(rows)


def _choose_output(outputs: Sequence[_Output], batch: int, file: Path) -> _Output:
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


def _check_finite(embeddings: np.ndarray, model: onnx.ModelProto, file: Path) -> None:
    finite = np.asarray(np.isfinite(embeddings).all(axis=1))
    if finite.all():
        return
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    broken = [
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type in floats and not np.isfinite(onnx.numpy_helper.to_array(tensor)).all()
    ]
    fix = "check scale, mean and std: numbers that large overflow in the network, in float16 first"
    if broken:
        fix = f"export the network again: its weights hold NaN or infinite values ({', '.join(broken[:5])})"
    raise ModelError(
        f"{file} gives NaN or infinite embeddings",
        got=f"on {int((~finite).sum())} of {len(finite)} golden crops",
        expected="finite numbers",
        fix=fix,
    )


def _with_largest_batch(
    model: onnx.ModelProto,
    image: ImageInput,
    output: _Output,
    spec: InputSpec,
    golden: Golden,
    file: Path,
    tolerance: float,
) -> tuple[bytes, int | None, list[str]]:
    """The graph with pre-processing inside: for any batch where that is proven, else for the batch it was made for."""
    dim, made_for = golden.embeddings.shape[1], image.batch or 1
    reason = None
    for free in (lambda: model, lambda: with_free_reshapes(model, made_for)):
        if (candidate := free()) is None:
            continue
        graph = _serialised(with_preprocessing(candidate, image, output.name, spec, dim=dim, batch=None), file)
        if (reason := _disagreement(graph, golden, _BATCHES, tolerance)) is None:
            shown = ", ".join(map(str, _BATCHES))
            note = (
                f"The graph was made for batches of {made_for}; now it takes any, as runs of {shown} crops have shown."
            )
            return graph, None, [] if image.batch is None else [note]
    graph = _serialised(with_preprocessing(model, image, output.name, spec, dim=dim, batch=made_for), file)
    if (mismatch := _disagreement(graph, golden, (made_for,), tolerance)) is not None:
        raise ModelError(
            f"{file} does not give the same embeddings with its pre-processing inside",
            got=mismatch,
            expected="what the file itself gives for each crop alone",
            fix="export the network in evaluation mode: dropout depends on chance, batch statistics on neighbours",
        )
    note = f"The graph takes batches of {made_for} only, and was left so. Made to take any, it fails: {reason}."
    return graph, made_for, [note]


def _precision(model: onnx.ModelProto, image: ImageInput) -> Precision:
    """The coarsest arithmetic of a network, by the types of its weights and of its input."""
    kind = onnx.TensorProto
    types = {tensor.data_type for tensor in model.graph.initializer}
    if types & {kind.INT8, kind.UINT8}:
        return "int8"
    if kind.BFLOAT16 in types:
        return "bfloat16"
    return "float16" if kind.FLOAT16 in types or image.dtype == np.float16 else "float32"


def _serialised(model: onnx.ModelProto, file: Path) -> bytes:
    try:
        return model.SerializeToString(deterministic=True)
    except (ValueError, EncodeError) as error:
        raise too_large(file) from error


def _disagreement(graph: bytes, golden: Golden, batches: Sequence[int], tolerance: float) -> str | None:
    """Why a graph with pre-processing inside is not as good as the golden embeddings; None when it is."""
    try:
        session = _session(graph)
    except Exception as error:
        return first_line(error)
    norms = np.linalg.norm(golden.embeddings, axis=1)
    allowed = tolerance * np.maximum(norms, 1e-3 * norms.max())
    for batch in batches:
        # Every crop takes part, and the last batch is filled up from the front.
        for start in range(0, len(golden.crops), batch):
            rows = np.arange(start, start + batch) % len(golden.crops)
            try:
                got = np.asarray(session.run([EMBEDDINGS], {CROPS: golden.crops[rows]})[0])
            except Exception as error:
                return f"on a batch of {batch}, {first_line(error)}"
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


def _doubts(embeddings: Float32[np.ndarray, "n dim"]) -> list[str]:
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


def _scale_doubts(spec: InputSpec) -> list[str]:
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


def _session(source: str | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failure comes as an exception; the library would print it as well
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
