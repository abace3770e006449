"""Engines that were built for a bundle, and the facts that bind each to a graph, a library and a card.

    NAME.reid/engines/
        tensorrt-8.6.0-nvidia-h200-float16-network.engine   what the builder made
        tensorrt-8.6.0-nvidia-h200-float16-network.json     `EngineFacts`, the engine's sha256 among them

An engine is native code: a file is handed to its library only when its sha256 is the recorded one, and facts and graph
fit. That finds damage and mix-ups, not malice: who can write the engine can write the facts. Take engines only from
whom you would run a program of.
"""

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reidkit.bundle import MODEL, WEIGHTS, Bundle
from reidkit.config import from_dict, to_dict
from reidkit.errors import BundleError, ConfigError
from reidkit.types import Precision

Via = Literal["network", "parser"]
"""How the network came to the builder: through its network-definition API, or as ONNX through its parser."""

FOLDER = "engines"
SCHEMA = 1

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Profile:
    """A range of batch sizes that an engine has its own kernels for.

    Attributes:
        least: smallest batch.
        best: batch that the kernels were chosen for.
        most: largest batch.
    """

    least: int
    best: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.best <= self.most:
            raise ConfigError("A profile's batches are out of order", got=(self.least, self.best, self.most))


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine is and where it runs.

    Attributes:
        runtime: "tensorrt" or "tensorrt-rtx".
        version: of the library that built it.
        precision: of the arithmetic.
        via: how the network came to the builder.
        graph: `graph_digest` of what it was built from.
        profiles: in the order of their batches; no batch is in two.
        sha256: of the engine's file.
        size: of that file, bytes.
        gpu: name of the card it was built on; None where it was built without one.
        compute_capability: of that card, as "9.0", or the least that it was built for.
        driver: version of the driver that it was built with, as "580.95"; None without a card.
        options: "version-compatible", "hardware-compatible", "refit", "weight-stripped".
        workspace: bytes that the builder's kernels might take; None for all there is.
        build_seconds: that the builder took.
        created: ISO 8601, UTC.
        reidkit: version that built it.
    """

    runtime: str
    version: str
    precision: Precision
    via: Via
    graph: str
    profiles: tuple[Profile, ...]
    sha256: str
    size: int
    gpu: str | None = None
    compute_capability: str | None = None
    driver: str | None = None
    options: tuple[str, ...] = ()
    workspace: int | None = None
    build_seconds: float | None = None
    created: str | None = None
    reidkit: str | None = None

    @property
    def name(self) -> str:
        """Of its files, without suffix: one engine of a kind stands in a store."""
        card = self.gpu or f"cc{self.compute_capability or 'any'}"
        words = (self.runtime, self.version, card, self.precision, self.via)
        return "-".join(re.sub(r"[^a-z0-9.]+", "-", word.lower()).strip("-") for word in words)


def graph_digest(bundle: Bundle, via: Via) -> str:
    """What an engine is built from, as a sha256: the ONNX graph; or weights, architecture and input."""
    manifest = bundle.manifest
    if via == "parser":
        return manifest.files[MODEL]
    described = {
        "weights": manifest.files.get(WEIGHTS),
        "architecture": to_dict(manifest.architecture),
        "input": to_dict(manifest.input),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def read_store(bundle: Bundle) -> list[EngineFacts]:
    """Facts of every engine that was built for a bundle, by name; unreadable ones cost a warning in the log."""
    found = []
    for file in sorted((bundle.path / FOLDER).glob("*.json")):
        try:
            found.append(_read_facts(file))
        except BundleError as error:
            _logger.warning("%s", error)
    return found


def _read_facts(file: Path) -> EngineFacts:
    try:
        values: Any = json.loads(file.read_bytes())
        if not isinstance(values, dict) or values.pop("schema", None) != SCHEMA:
            raise ConfigError("It has no schema that this reidkit knows", expected=SCHEMA)
        return from_dict(EngineFacts, values, where=file.name)
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise BundleError(f"{file} cannot be read", got=error, fix="build the engine again") from error
