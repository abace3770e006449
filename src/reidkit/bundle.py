"""The bundle: a folder `NAME.reid/` that holds one model and the truth about it.

    manifest.json         what it is, where it comes from, what was measured, and the sha256 of every file
    model.onnx            pre-processing inside: uint8 n x height x width x 3 RGB in, float32 n x dim out
    weights.safetensors   the float32 weights under their canonical names, when the architecture is known
    golden.npz            `crops` and the `embeddings` that the source framework gave for them

A bundle is written whole or not at all, and opened whole or not at all: every file is checked against its hash, the
manifest against its own.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from reidkit.atomic import check_free, output_directory, output_file
from reidkit.config import from_dict, to_dict
from reidkit.errors import BundleError, ConfigError, InputError
from reidkit.types import InputSpec, Precision, Task

SCHEMA = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.npz"
SUFFIX = ".reid"

LicenceClass = Literal["permissive", "copyleft", "research-only", "proprietary", "unknown"]


@dataclass(frozen=True, slots=True)
class Embedding:
    """The output of the graph.

    Attributes:
        dim: width.
        normalized: whether the graph itself scales every embedding to Euclidean length 1.
    """

    dim: int
    normalized: bool = False

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigError("The embedding width is out of range", got=self.dim, expected="1 or more")


@dataclass(frozen=True, slots=True)
class Architecture:
    """A known network, from which the graph can be built again; None in the manifest for a foreign graph."""

    family: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the weights come from. None where it is not known; nothing is invented.

    Attributes:
        source: what the bundle was made from (a file name or a run), without its folder.
        source_sha256: of that file.
        framework: that gave the golden embeddings, with its version.
        dataset: trained on.
        recipe: the training recipe, whole, as plain values.
        created: ISO 8601, UTC.
        reidkit: version that wrote the bundle.
    """

    source: str | None = None
    source_sha256: str | None = None
    framework: str | None = None
    dataset: str | None = None
    recipe: Mapping[str, Any] | None = None
    created: str | None = None
    reidkit: str | None = None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One measurement: fractions of 1 on one data set under one protocol.

    Attributes:
        dataset: its format, its name or both.
        protocol: that ranked.
        metric: distance between embeddings.
        runtime: engine.
        precision: of the engine's arithmetic.
        device: that it ran on, in the engine's own words.
        rank1: queries whose nearest counted gallery crop is right.
        mAP: mean average precision.
        mINP: mean inverse negative penalty.
        queries: that were valid.
        gallery: crops that were ranked.
    """

    dataset: str
    protocol: str
    metric: str
    runtime: str
    precision: str
    device: str
    rank1: float
    mAP: float  # noqa: N815 (the field writes it so)
    mINP: float  # noqa: N815
    queries: int
    gallery: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The truth about a bundle.

    Attributes:
        name: short name of the model.
        task: what it tells apart.
        input: size, filter and the pre-processing that is inside the graph.
        embedding: the output.
        batch: the only batch size that the graph takes, or None where any will do.
        precision: of the arithmetic in the graph; a foreign one may be coarser than float32.
        architecture: the known network, or None for a foreign graph.
        licence: class of licence of the weights.
        provenance: where they come from.
        accuracy: what was measured.
        files: sha256 by file name, relative to the bundle, with `/`.
    """

    name: str
    task: Task
    input: InputSpec
    embedding: Embedding
    batch: int | None = None
    precision: Precision = "float32"
    architecture: Architecture | None = None
    licence: LicenceClass = "unknown"
    provenance: Provenance = field(default_factory=Provenance)
    accuracy: tuple[Accuracy, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise ConfigError("The batch size is out of range", got=self.batch, expected="1 or more, or null for any")


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
    def model(self) -> Path:
        """The ONNX graph."""
        return self.path / MODEL

    @property
    def weights(self) -> Path | None:
        """The weights, or None for a foreign graph."""
        return self.path / WEIGHTS if WEIGHTS in self.manifest.files else None

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
        raise BundleError("A bundle's name must end in .reid", got=str(path), fix=f"call it {path.name}{SUFFIX}")
    check_free(path, overwrite=overwrite, marker=MANIFEST)


def write_bundle(
    path: Path | str,
    manifest: Manifest,
    *,
    model: bytes,
    golden: Golden,
    weights: bytes | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Writes a bundle, whole or not at all, and opens it.

    Args:
        path: of the bundle; must end in `.reid`.
        manifest: its `files` are filled in here.
        model: the ONNX graph.
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
    files = {MODEL: model, GOLDEN: buffer.getvalue()} | ({WEIGHTS: weights} if weights is not None else {})
    files[MANIFEST] = _manifest_bytes(replace(manifest, files={name: _sha256(data) for name, data in files.items()}))
    with output_directory(path, marker=MANIFEST, overwrite=overwrite) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
    return open_bundle(path)


def record_accuracy(bundle: Bundle, accuracy: Accuracy) -> Bundle:
    """Adds a measurement to the manifest, in place of an earlier one that was made in the same way.

    The same way is the same data set, protocol, metric, runtime, precision and device.

    Raises:
        ConfigError: the measurement holds a value that could not be read back.
        BundleError: the bundle was replaced since it was opened: the measurement is not of what is there now.
        OutputError: the manifest cannot be written to, or the disk is full.
    """
    # Read again: another measurement may have been recorded while this one was made.
    current = _read_manifest(bundle.path / MANIFEST)
    if current.files != bundle.manifest.files:
        raise BundleError(f"{bundle.path} was replaced while it was measured", fix="measure it again")
    others = tuple(a for a in current.accuracy if _conditions(a) != _conditions(accuracy))
    manifest = replace(current, accuracy=(*others, accuracy))
    data = _manifest_bytes(manifest)
    with output_file(bundle.path / MANIFEST) as temporary:
        temporary.write_bytes(data)
    return replace(bundle, manifest=manifest)


def _conditions(accuracy: Accuracy) -> tuple[str, ...]:
    return (
        accuracy.dataset,
        accuracy.protocol,
        accuracy.metric,
        accuracy.runtime,
        accuracy.precision,
        accuracy.device,
    )


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
    for name in (MODEL, GOLDEN):
        if name not in manifest.files:
            raise BundleError(f"{path / MANIFEST} lists no {name}", fix="export the bundle again")
    return Bundle(path, manifest)


def _read_manifest(file: Path) -> Manifest:
    try:
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{file} is missing", expected="a bundle", fix="check the path, or copy it whole") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file} cannot be read", got=error, fix="copy the bundle again, whole") from error
    if not isinstance(values, dict) or type(values.get("schema")) is not int:
        raise BundleError(f"{file} is no manifest", expected='an object with a number "schema"')
    schema, digest = values.pop("schema"), values.pop("sha256", None)
    if not 1 <= schema <= SCHEMA:  # what an older one does not have takes its default
        fix = "update reidkit (pip install -U reidkit)" if schema > SCHEMA else "export the bundle again"
        raise BundleError(f"{file} has a schema this reidkit cannot read", got=schema, expected=SCHEMA, fix=fix)
    if digest != _sha256(_canonical(values)):
        raise BundleError(
            f"{file} was changed after it was written",
            got=f"sha256 {_sha256(_canonical(values))[:16]}…",
            expected=f"sha256 {str(digest)[:16]}…",
            fix="copy the bundle again, whole; or export it again",
        )
    try:
        return from_dict(Manifest, values, where=file.name)
    except ConfigError as error:
        raise BundleError(f"{file} is not what this reidkit writes", got=error) from error


def _check_name(path: Path, name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or not pure.parts:
        raise BundleError(f"{path / MANIFEST} names a file outside the bundle", got=repr(name), fix="do not use it")
    for part in (pure, *pure.parents[:-1]):
        if (path / part).is_symlink():
            raise BundleError(
                f"{path / part} is a link", expected="a plain file inside the bundle", fix="do not use it"
            )


def _manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as it is written; refused where `_read_manifest` would refuse it."""
    values = to_dict(manifest)
    from_dict(Manifest, values, where="manifest")
    try:
        digest = _sha256(_canonical(values))
    except TypeError as error:
        raise ConfigError("The manifest holds what JSON cannot say", got=error, expected="plain values") from error
    whole = {"schema": SCHEMA, "sha256": digest, **values}
    # A file name that is no Unicode has lone surrogates; a backslash escape is how JSON writes those, too.
    return json.dumps(whole, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _canonical(values: Mapping[str, Any]) -> bytes:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")


def file_sha256(path: Path) -> str:
    """The sha256 of a file, read a piece at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
