"""The manifest: what a bundle says of itself, as frozen dataclasses; and their form in JSON."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reidkit.architecture import ModelSpec, read_model_spec
from reidkit.config import from_dict, to_dict
from reidkit.errors import BundleError, ConfigError
from reidkit.types import InputSpec, Precision, Task, Via

SCHEMA = 2

LicenceClass = Literal["permissive", "copyleft", "research-only", "proprietary", "unknown"]
Tta = Literal["none", "flip", "multiscale", "flip+multiscale"]


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
class Provenance:
    """Where the weights come from. None where it is not known; nothing is invented.

    Attributes:
        source: what the bundle was made from (a file name or a run), without its folder.
        source_sha256: of that file.
        dialect: how the source was written, as `reid import` found it: whose code, of which time.
        init: the weights that training started from, where not from random ones.
        teacher: the network that it copied from, where it was distilled.
        assumptions: what the source does not say and was assumed.
        framework: that gave the golden embeddings, with its version.
        dataset: trained on.
        recipe: the training recipe, whole, as plain values.
        created: ISO 8601, UTC.
        reidkit: version that wrote the bundle.
    """

    source: str | None = None
    source_sha256: str | None = None
    dialect: str | None = None
    init: str | None = None
    teacher: str | None = None
    assumptions: tuple[str, ...] = ()
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
        tta: test-time augmentation: "flip" adds the embedding of the mirrored crop, "multiscale" those of the crop at
            other scales, "flip+multiscale" those of all of them from both sides.
        refinement: of the distances before they were ranked, in words: query expansion, re-ranking.
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
    tta: Tta = "none"
    refinement: str = "none"

    def __post_init__(self) -> None:
        for name in ("rank1", "mAP", "mINP"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is out of range", got=getattr(self, name), expected="0 to 1")


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one batch takes on an engine, here: one row of a benchmark.

    Attributes:
        runtime: engine.
        precision: of the engine's arithmetic.
        device: that it ran on, in the engine's own words.
        machine: processor or card, and how much of it.
        batch: crops a call.
        decode: whether the time includes reading, decoding and resizing the batch's JPEG files in threads.
        median_ms: wall time of one batch, milliseconds.
        p90_ms: nine of ten batches are at least this fast.
        images_per_second: batch over median; decoding and engine take turns here, in `embed_files` they overlap.
        runs: batches that were timed.
        via: how the network came to an engine's builder; None where nothing was built.
        gpu_ms: median of the device's own time for one batch, crops and embeddings staying there, milliseconds; None
            where the engine keeps no such time, or decoding is included.
        device_memory: bytes of the device that the engine holds.
        engine_bytes: size of the engine's file.
        build_seconds: that making the engine took.
    """

    runtime: str
    precision: str
    device: str
    machine: str
    batch: int
    decode: bool
    median_ms: float
    p90_ms: float
    images_per_second: float
    runs: int
    via: Via | None = None
    gpu_ms: float | None = None
    device_memory: int | None = None
    engine_bytes: int | None = None
    build_seconds: float | None = None

    def __post_init__(self) -> None:
        numbers = (
            "median_ms",
            "p90_ms",
            "images_per_second",
            "gpu_ms",
            "device_memory",
            "engine_bytes",
            "build_seconds",
        )
        for name in numbers:
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise ConfigError(f"{name} is out of range", got=getattr(self, name), expected="0 or above, finite")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one crop costs.

    Attributes:
        parameters: weights that are learned; the classifier of the training identities is not there any more.
        multiply_adds: of convolutions and matrix products for one crop of the input size, each counted once (what the
            field calls FLOPs); None where it is not known.
    """

    parameters: int
    multiply_adds: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("parameters", self.parameters), ("multiply_adds", self.multiply_adds or 0)):
            if not 0 <= value < 1 << 63:
                raise ConfigError(f"The number of {name} is out of range", got=value, expected="0 to 2**63")


CHECKPOINT = "model.safetensors"
"""The checkpoint that a run is worth: the best network where it was measured, else the last."""


def checkpoint_file(path: Path) -> Path:
    """The checkpoint of a run of `reid train`; of a path that is no folder, the path."""
    return path / CHECKPOINT if path.is_dir() else path


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What a checkpoint says about its weights.

    Attributes:
        architecture: of the network.
        input: of the crops that it takes.
        task: what the identities are.
        provenance: where the weights come from.
        identities: sha256 over the names of the training identities, in the order of the classifier's rows; or "".
    """

    architecture: ModelSpec
    input: InputSpec
    task: Task
    provenance: Provenance
    identities: str = ""


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
        architecture: the known network, from which the graph can be built again; None for a foreign graph.
        cost: parameters and multiply-adds, or None where nobody counted.
        licence: class of licence of the weights.
        provenance: where they come from.
        accuracy: how well it finds people again, as measured.
        latency: how fast it is, as measured.
        files: sha256 by file name, relative to the bundle, with `/`.
    """

    name: str
    task: Task
    input: InputSpec
    embedding: Embedding
    batch: int | None = None
    precision: Precision = "float32"
    architecture: ModelSpec | None = None
    cost: Cost | None = None
    licence: LicenceClass = "unknown"
    provenance: Provenance = field(default_factory=Provenance)
    accuracy: tuple[Accuracy, ...] = ()
    latency: tuple[Latency, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise ConfigError("The batch size is out of range", got=self.batch, expected="1 or more, or null for any")


def read_facts(described: Mapping[str, Any]) -> CheckpointFacts:
    """What a checkpoint of today or of reidkit's first schema says of itself.

    Raises:
        ConfigError: an unknown or missing key, or a value that cannot be.
    """
    if isinstance(described.get("architecture"), dict):
        described = {**described, "architecture": to_dict(read_model_spec(described["architecture"]))}
    return from_dict(CheckpointFacts, described, where="checkpoint")


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as it is written, signed with its own sha256; refused where `parse_manifest` would refuse it.

    Raises:
        ConfigError: it holds a value that could not be read back.
    """
    values = to_dict(manifest)
    from_dict(Manifest, values, where="manifest")
    try:
        digest = _digest(values)
    except TypeError as error:
        raise ConfigError("The manifest holds what JSON cannot say", got=error, expected="plain values") from error
    whole = {"schema": SCHEMA, "sha256": digest, **values}
    # A file name that is no Unicode has lone surrogates; a backslash escape is how JSON writes those, too.
    return json.dumps(whole, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def parse_manifest(data: bytes, *, source: str) -> Manifest:
    """Reads a manifest back; what an older schema does not have takes its default.

    Args:
        data: the file's bytes.
        source: name of the file, for the messages.

    Raises:
        BundleError: no manifest, changed after it was written, or of a schema that this version cannot read.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source} cannot be read", got=error, fix="copy the bundle again, whole") from error
    if not isinstance(values, dict) or type(values.get("schema")) is not int:
        raise BundleError(f"{source} is no manifest", expected='an object with a number "schema"')
    schema, digest = values.pop("schema"), values.pop("sha256", None)
    if not 1 <= schema <= SCHEMA:
        fix = "update reidkit (pip install -U reidkit)" if schema > SCHEMA else "export the bundle again"
        raise BundleError(f"{source} has a schema this reidkit cannot read", got=schema, expected=SCHEMA, fix=fix)
    if digest != _digest(values):
        raise BundleError(
            f"{source} was changed after it was written",
            got=f"sha256 {_digest(values)[:16]}…",
            expected=f"sha256 {str(digest)[:16]}…",
            fix="copy the bundle again, whole; or export it again",
        )
    try:
        if schema == 1 and isinstance(values.get("architecture"), dict):
            values["architecture"] = to_dict(read_model_spec(values["architecture"]))
        return from_dict(Manifest, values, where="manifest.json")
    except ConfigError as error:
        raise BundleError(f"{source} is not what this reidkit writes", got=error) from error


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
