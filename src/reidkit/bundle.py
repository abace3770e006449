"""The bundle: a folder `NAME.reid/` that holds one model and the truth about it.

    manifest.json         what it is, where it comes from, what was measured, and the sha256 of every file
    model.onnx            pre-processing inside: uint8 n x height x width x 3 RGB in, float32 n x dim out
    weights.safetensors   the float32 weights under their canonical names, when the architecture is known
    golden.npz            `crops` and the `embeddings` that the source framework gave for them

and, once it is quantised (`reid quantize`), the table of ranges, the graphs made from it, and TensorRT's own table:

    calibration.json   model.int8-cpu.onnx   model.int8-tensorrt.onnx   calibration.cache

A network that came as OpenVINO IR has `model.xml` and `model.bin` in place of `model.onnx`, which take and give the
same.

A bundle is written whole or not at all, and opened whole or not at all: every file is checked against its hash, the
manifest against its own.
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8

from reidkit.atomic import check_free, output_directory, output_file
from reidkit.calibration import EngineKind
from reidkit.errors import BundleError, InputError
from reidkit.manifest import Accuracy, Latency, Manifest, manifest_bytes, parse_manifest
from reidkit.types import Precision

MANIFEST = "manifest.json"
MODEL = "model.onnx"
WEIGHTS = "weights.safetensors"
IR_MODEL, IR_WEIGHTS = "model.xml", "model.bin"
GOLDEN = "golden.npz"
CALIBRATION = "calibration.json"
CALIBRATION_CACHE = "calibration.cache"
INT8_MODELS: dict[EngineKind, str] = {
    "cpu": "model.int8-cpu.onnx",
    "tensorrt": "model.int8-tensorrt.onnx",
}
"""The quantised graphs, by the kind of engine that each is made for."""
SUFFIX = ".reid"
_OTHER_SUFFIXES = frozenset({".reid", ".onnx", ".xml", ".pt", ".pth"})  # that .reid takes the place of

GraphFormat = Literal["onnx", "openvino"]
GRAPH_FILES: dict[GraphFormat, tuple[str, ...]] = {"onnx": (MODEL,), "openvino": (IR_MODEL, IR_WEIGHTS)}
"""What a graph is written in, and the files that it then is; a bundle has those of one format."""


@dataclass(frozen=True, slots=True)
class IrGraph:
    """A graph as OpenVINO IR: the contents of the .xml and of the .bin."""

    xml: bytes
    weights: bytes


@dataclass(frozen=True, slots=True)
class Golden:
    """Crops and the embeddings that the source framework gave for them: the truth that `verify` holds engines to."""

    crops: UInt8[np.ndarray, "n height width 3"]
    embeddings: Float32[np.ndarray, "n dim"]


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: every file was there and had its recorded hash."""

    path: Path
    manifest: Manifest

    @property
    def graph_format(self) -> GraphFormat:
        """What the graph is written in."""
        return "openvino" if IR_MODEL in self.manifest.files else "onnx"

    @property
    def model(self) -> Path:
        """The graph: the ONNX file, or the .xml of an OpenVINO IR."""
        return self.path / GRAPH_FILES[self.graph_format][0]

    @property
    def weights(self) -> Path | None:
        """The weights, or None for a foreign graph."""
        return self.path / WEIGHTS if WEIGHTS in self.manifest.files else None

    @property
    def calibration(self) -> Path | None:
        """The table of ranges, or None where the bundle was not quantised."""
        return self.path / CALIBRATION if CALIBRATION in self.manifest.files else None

    def int8_model(self, kind: EngineKind) -> Path | None:
        """The quantised graph for a kind of engine, or None where the bundle was not quantised."""
        name = INT8_MODELS[kind]
        return self.path / name if name in self.manifest.files else None

    def golden(self) -> Golden:
        """Reads the golden crops and embeddings.

        Raises:
            BundleError: the arrays are not there or do not fit the manifest.
        """
        file = self.path / GOLDEN
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                crops, embeddings = arrays["crops"], arrays["embeddings"]
        except Exception as error:  # numpy and zipfile raise almost anything on what is not theirs
            raise BundleError(f"{file} cannot be read", got=error, expected="arrays crops and embeddings") from error
        if misfit := _golden_misfit(crops, embeddings, self.manifest):
            got, expected = misfit
            raise BundleError(f"{file} does not fit the manifest", got=got, expected=expected)
        return Golden(crops, embeddings)


def _golden_misfit(crops: np.ndarray, embeddings: np.ndarray, manifest: Manifest) -> tuple[str, str] | None:
    """What the golden arrays are and what they should be, or None where they fit."""
    size, dim = (manifest.input.height, manifest.input.width, 3), manifest.embedding.dim
    got = f"{crops.dtype} {crops.shape} and {embeddings.dtype} {embeddings.shape}"
    expected = f"uint8 (n, {', '.join(map(str, size))}) and float32 (n, {dim}), n at least 1"
    if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1:] != size or len(crops) == 0:
        return got, expected
    if embeddings.dtype != np.float32 or embeddings.shape != (len(crops), dim):
        return got, expected
    # No engine could be held to a NaN.
    return None if np.isfinite(embeddings).all() else ("embeddings that are not finite", expected)


def check_place(path: Path | str, *, overwrite: bool = False) -> None:
    """Refuses a place that no bundle can be written to: asked first, it spares the work.

    Args:
        path: of the bundle that is to be written.
        overwrite: whether a bundle that is already there may be replaced.

    Raises:
        BundleError: the name does not end in `.reid`.
        OutputError: something stands there and `overwrite` is False; or something that is no bundle.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        name = path.stem if path.suffix.lower() in _OTHER_SUFFIXES else path.name
        raise BundleError(
            "A bundle's name must end in .reid", got=str(path), fix=f"call it {name.removesuffix(SUFFIX)}{SUFFIX}"
        )
    check_free(path, overwrite=overwrite, marker=MANIFEST)


def write_bundle(
    path: Path | str,
    manifest: Manifest,
    *,
    model: bytes | IrGraph,
    golden: Golden,
    weights: bytes | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Writes a bundle, whole or not at all, and opens it.

    Args:
        path: of the bundle; must end in `.reid`.
        manifest: its `files` are filled in here.
        model: the graph; bytes are ONNX.
        golden: crops and embeddings of the source framework.
        weights: a safetensors file, when the architecture is known.
        overwrite: replace a bundle that is already there.

    Raises:
        BundleError: the name does not end in `.reid`.
        OutputError: the place is taken or cannot be written to, or the disk is full.
        ConfigError: the manifest holds a value that could not be read back.
        InputError: the golden arrays do not fit the manifest.
    """
    path = Path(path)
    check_place(path, overwrite=overwrite)
    if misfit := _golden_misfit(golden.crops, golden.embeddings, manifest):
        got, expected = misfit
        raise InputError("The golden arrays do not fit the manifest", got=got, expected=expected)
    buffer = io.BytesIO()
    np.savez(buffer, crops=golden.crops, embeddings=golden.embeddings)
    graph = {IR_MODEL: model.xml, IR_WEIGHTS: model.weights} if isinstance(model, IrGraph) else {MODEL: model}
    files = {**graph, GOLDEN: buffer.getvalue()} | ({WEIGHTS: weights} if weights is not None else {})
    files[MANIFEST] = manifest_bytes(replace(manifest, files={name: _sha256(data) for name, data in files.items()}))
    with output_directory(path, marker=MANIFEST, overwrite=overwrite) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
    return open_bundle(path)


def record_accuracy(bundle: Bundle, accuracy: Accuracy) -> Bundle:
    """Adds a measurement to the manifest, in place of an earlier one that was made in the same way.

    The same way is the same data set, protocol, metric, refinement, test-time augmentation, runtime, precision and
    device.

    Raises:
        ConfigError: the measurement holds a value that could not be read back.
        BundleError: the bundle was replaced since it was opened: the measurement is not of what is there now.
        OutputError: the manifest cannot be written to, or the disk is full.
    """

    def way(a: Accuracy) -> tuple[str, ...]:
        return (a.dataset, a.protocol, a.metric, a.refinement, a.tta, a.runtime, a.precision, a.device)

    def add(current: Manifest) -> Manifest:
        others = tuple(a for a in current.accuracy if way(a) != way(accuracy))
        return replace(current, accuracy=(*others, accuracy))

    return _record(bundle, add)


def record_latency(bundle: Bundle, rows: Sequence[Latency]) -> Bundle:
    """Adds timings to the manifest, each in place of an earlier one that was made in the same way.

    The same way is the same runtime, precision, `via`, device, machine, batch and with or without decoding.

    Raises:
        ConfigError, BundleError, OutputError: as `record_accuracy`.
    """

    def way(row: Latency) -> tuple[object, ...]:
        return (row.runtime, row.precision, row.via, row.device, row.machine, row.batch, row.decode)

    def add(current: Manifest) -> Manifest:
        new = {way(row) for row in rows}
        return replace(current, latency=(*(row for row in current.latency if way(row) not in new), *rows))

    return _record(bundle, add)


def _record(bundle: Bundle, add: Callable[[Manifest], Manifest]) -> Bundle:
    # Read again: another measurement may have been recorded while this one was made.
    current = _read_manifest(bundle.path / MANIFEST)
    if current.files != bundle.manifest.files:
        raise BundleError(
            f"{bundle.path} was replaced since it was opened", fix="do it again: this was not of what is there now"
        )
    manifest = add(current)
    data = manifest_bytes(manifest)
    with output_file(bundle.path / MANIFEST) as temporary:
        temporary.write_bytes(data)
    return replace(bundle, manifest=manifest)


def replace_files(bundle: Bundle, files: Mapping[str, bytes], *, stale: Precision | None = None) -> Bundle:
    """Puts files beside the others of a bundle, in place of those of the same name.

    At whatever moment this breaks off, the bundle can be opened: with the old ones, without any, or with the new ones.

    Args:
        bundle: an open bundle.
        files: contents by name; none of model, weights and golden embeddings, which are what it is.
        stale: what was measured in this precision was of the old files, and falls away.

    Raises:
        BundleError: the bundle was replaced since it was opened.
        OutputError: it cannot be written to, or the disk is full.
    """
    if fixed := {MANIFEST, MODEL, IR_MODEL, IR_WEIGHTS, WEIGHTS, GOLDEN}.intersection(files):
        raise ValueError(f"{sorted(fixed)} are written by write_bundle alone")

    def listed(digests: Mapping[str, str]) -> Callable[[Manifest], Manifest]:
        return lambda current: replace(
            current,
            files={**{name: digest for name, digest in current.files.items() if name not in files}, **digests},
            accuracy=tuple(row for row in current.accuracy if row.precision != stale),
            latency=tuple(row for row in current.latency if row.precision != stale),
        )

    if not bundle.manifest.files.keys().isdisjoint(files):
        bundle = _record(bundle, listed({}))
    for name, data in files.items():
        with output_file(bundle.path / name) as temporary:
            temporary.write_bytes(data)
    return _record(bundle, listed({name: _sha256(data) for name, data in files.items()}))


def open_bundle(path: Path | str) -> Bundle:
    """Opens a bundle after checking that every file is there, whole and unchanged.

    Raises:
        BundleError: no bundle, a missing, changed or foreign file (named), or a schema that this version cannot read.
    """
    path = Path(path)
    try:
        return _open_checked(path)
    except (OSError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read", got=error, fix="check its permissions, or copy it again") from error


def _open_checked(path: Path) -> Bundle:
    if not path.is_dir():
        what = "is a file, not a bundle" if path.exists() else "does not exist"
        raise BundleError(f"{path} {what}", expected=f"a folder NAME{SUFFIX}", fix="check the path")
    manifest = _read_manifest(path / MANIFEST)
    for name, expected in manifest.files.items():
        _check_name(path, name)
        file = path / name
        if not file.is_file():
            raise BundleError(f"{file} is missing", fix="copy the bundle again, whole; or export it again")
        got = file_sha256(file)
        if got != expected:
            raise BundleError(
                f"{file} is not the file that the manifest was written for",
                got=f"sha256 {got[:16]}… of {file.stat().st_size:,} bytes",
                expected=f"sha256 {expected[:16]}…",
                fix="copy the bundle again, whole; or export it again",
            )
    if MODEL in manifest.files and IR_MODEL in manifest.files:
        raise BundleError(
            f"{path / MANIFEST} lists two graphs", got=f"{MODEL}, {IR_MODEL}", expected="one", fix="import it again"
        )
    bundle = Bundle(path, manifest)
    for name in (*GRAPH_FILES[bundle.graph_format], GOLDEN):
        if name not in manifest.files:
            raise BundleError(f"{path / MANIFEST} lists no {name}", fix="export the bundle again")
    return bundle


def _read_manifest(file: Path) -> Manifest:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{file} is missing", expected="a bundle", fix="check the path, or copy it whole") from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read", got=error, fix="copy the bundle again, whole") from error
    return parse_manifest(data, source=str(file))


def _check_name(path: Path, name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or not pure.parts:
        raise BundleError(f"{path / MANIFEST} names a file outside the bundle", got=repr(name), fix="do not use it")
    for part in (pure, *pure.parents[:-1]):
        if (path / part).is_symlink():
            raise BundleError(
                f"{path / part} is a link", expected="a plain file inside the bundle", fix="do not use it"
            )


def file_sha256(path: Path) -> str:
    """The sha256 of a file, read a piece at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
