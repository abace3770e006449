"""What is known of built engines and of the fastest ones, and whether an engine fits a graph, a library and a card."""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from reidkit.bundle import GRAPH_FILES, INT8_MODELS, MODEL, WEIGHTS, Bundle
from reidkit.config import to_dict
from reidkit.errors import ConfigError, require_one_of
from reidkit.types import Precision, Via

RUNTIMES = ("tensorrt", "tensorrt-rtx")
NO_CARD = "there is no NVIDIA card here"
"""The reason for which no engine runs on a machine, though TensorRT-RTX may build one there."""

OPTIONS = ("version-compatible", "hardware-compatible", "refit", "weight-stripped")

# From NVIDIA's support matrix: across major versions, no other pair runs a version-compatible engine.
_MAJORS_APART = {(8, 10), (10, 11)}
_FIRST_VERSION_COMPATIBLE = (8, 6)
_FIRST_HARDWARE_COMPATIBLE = (8, 0)  # Ampere
TURING, FIRST_OF_RTX = "7.5", "8.0"
"""Compute capabilities: of what TensorRT-RTX builds for when told so, and the least that it builds for otherwise."""

_RTX_BEFORE_BLACKWELL = ((7, 5), (8, 0), (8, 6), (8, 9))


WRITER = 3
"""Of what reidkit tells a builder. One more whenever networks or typed graphs come out as other arithmetic than before:
engines that were built from the older ones are then of another graph, and are not opened."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A library and the card that it would run an engine on.

    Attributes:
        runtime: "tensorrt" or "tensorrt-rtx".
        version: of the library; None where it is not installed.
        gpu: name of the card; None where there is none.
        compute_capability: of the card, as "9.0"; None where it could not be asked.
        driver: newest CUDA that its driver knows, as "13.0".
    """

    runtime: str
    version: str | None
    gpu: str | None = None
    compute_capability: str | None = None
    driver: str | None = None


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
        sha256: of the engine; empty until it is written.
        size: of the engine, bytes.
        gpu: name of the card it was built on; None where it was built without one.
        compute_capability: of that card, as "9.0"; of tensorrt-rtx, the least that it was built for.
        driver: newest CUDA that the driver knew which it was built with, as "13.0"; None without a card.
        options: "version-compatible", "hardware-compatible", "refit", "weight-stripped".
        workspace: bytes that the builder's kernels might take; None for all there is.
        effort: of the builder, 0 to 5; None for its own default.
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
    sha256: str = ""
    size: int = 0
    gpu: str | None = None
    compute_capability: str | None = None
    driver: str | None = None
    options: tuple[str, ...] = ()
    workspace: int | None = None
    effort: int | None = None
    build_seconds: float | None = None
    created: str | None = None
    reidkit: str | None = None

    def __post_init__(self) -> None:
        require_one_of("runtime", self.runtime, RUNTIMES)
        for option in self.options:
            require_one_of("option of an engine", option, OPTIONS)
        for what, text, pattern in (
            ("version", self.version, r"\d[\w.+]*"),
            ("sha256", self.sha256, r"([0-9a-f]{64})?"),
            ("compute capability", self.compute_capability or "0.0", r"\d{1,3}\.\d{1,3}"),
        ):
            if not re.fullmatch(pattern, text, re.ASCII):
                raise ConfigError(f"The {what} of an engine cannot be this", got=repr(text[:80]))
        pairs = zip(self.profiles, self.profiles[1:], strict=False)
        if not self.profiles or any(one.most >= other.least for one, other in pairs):
            raise ConfigError("The profiles of an engine are out of order", got=to_dict(self.profiles))
        if self.size < 0 or not math.isfinite(self.build_seconds or 0):
            raise ConfigError("An engine's numbers are out of range", got=(self.size, self.build_seconds))

    @property
    def stripped(self) -> bool:
        """Whether it has no weights, so that it cannot run as it is."""
        return "weight-stripped" in self.options

    @property
    def name(self) -> str:
        """Of its facts, without suffix: one engine of a kind stands in a store."""
        card = self.gpu or f"cc{self.compute_capability or 'any'}"
        stripped = ("stripped",) if self.stripped else ()  # it stands beside one that can run
        return "-".join(map(slug, (self.runtime, self.version, card, self.precision, self.via, *stripped)))

    @property
    def file(self) -> str:
        """Name of the engine's file."""
        return f"{self.name}-{self.sha256[:16]}.engine"


@dataclass(frozen=True, slots=True)
class Pick:
    """The engine for a range of batches.

    Attributes:
        most: largest batch of the range, which begins above that of the pick before; None for all that are left.
        runtime: name of the engine, as `reidkit.load` takes it.
        precision: of the arithmetic.
        via: how the network came to the builder, where it was built.
        build: sha256 of the engine, where it was built.
    """

    most: int | None
    runtime: str
    precision: Precision
    via: Via | None = None
    build: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The fastest of the engines that passed verification, on one device of one machine.

    Attributes:
        machine: as `reidkit.runtime.machine.machine` calls it.
        device: in the engines' own words.
        graph: `graph_digest` of what the bundle runs.
        precision: that was asked for; an engine in it may have been slower, or none.
        picks: by their batches; the last one has no end.
        timed: median milliseconds of the fastest, by batch size.
        created: ISO 8601, UTC.
    """

    machine: str
    device: str
    graph: str
    precision: Precision
    picks: tuple[Pick, ...]
    timed: tuple[tuple[int, float], ...] = ()
    created: str | None = None

    def __post_init__(self) -> None:
        ends = [math.inf if pick.most is None else pick.most for pick in self.picks]
        if not ends or ends[-1] != math.inf or any(a >= b for a, b in zip([0, *ends], ends, strict=False)):
            raise ConfigError("The ranges of batches are out of order", got=[pick.most for pick in self.picks])


def graph_digest(bundle: Bundle, via: Via, precision: Precision | None = None) -> str:
    """What an engine is built from, as a sha256: the graph; or weights, architecture and input; and `WRITER`.

    Args:
        bundle: that it is built for.
        via: how the network comes to the builder.
        precision: of the engine; in int8 the quantised graph counts too, whose scales it has either way.
    """
    manifest = bundle.manifest
    described: dict[str, Any] = {"writer": WRITER}
    if via == "network":
        described |= {
            "weights": manifest.files.get(WEIGHTS),
            "architecture": to_dict(manifest.architecture),
            "input": to_dict(manifest.input),
        }
    elif bundle.graph_format == "onnx":
        described["model"] = manifest.files[MODEL]
    else:
        described["model"] = [manifest.files[name] for name in GRAPH_FILES[bundle.graph_format]]
    if precision == "int8" and (quantized := manifest.files.get(INT8_MODELS["tensorrt"])):
        described["int8"] = quantized
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def misfits(facts: EngineFacts, bundle: Bundle, machine: Machine) -> tuple[str, ...]:
    """Why an engine is not to run here, in words; nothing where it may.

    An older driver than it was built with is no reason: the library knows what it needs, and says so.

    Args:
        facts: of the engine.
        bundle: that it lies in.
        machine: that it would run on.

    Source:
        NVIDIA's support matrices and pages on engine compatibility, of TensorRT 11.4 and TensorRT-RTX 1.5.
    """
    reasons = (
        None if facts.runtime == machine.runtime else f"it is for {facts.runtime}, not for {machine.runtime}",
        None
        if facts.graph == graph_digest(bundle, facts.via, facts.precision)
        else "it was built from another graph: the bundle was made again since",
        _other_version(facts, machine),
        _other_card(facts, machine),
    )
    return tuple(reason for reason in reasons if reason is not None)


def runs_on(runtime: str, compute_capability: str) -> bool:
    """Whether a flavour knows cards of a compute capability: TensorRT-RTX leaves out those of data centres."""
    number = _numbers(compute_capability)
    return runtime != "tensorrt-rtx" or number in _RTX_BEFORE_BLACKWELL or number >= (12, 0)


def _other_version(facts: EngineFacts, machine: Machine) -> str | None:
    if machine.version is None:
        return f"{machine.runtime} is not installed here"
    if facts.version == machine.version:
        return None
    reason = f"it was built by {facts.runtime} {facts.version}, and this is {machine.version}"
    # TensorRT-RTX runs no engine of another release, whatever it was told.
    if facts.runtime != "tensorrt" or "version-compatible" not in facts.options:
        return reason
    built, here = _numbers(facts.version), _numbers(machine.version)
    majors = built[:1] + here[:1]
    fits = (built[:1] == here[:1] or majors in _MAJORS_APART) and _FIRST_VERSION_COMPATIBLE <= built <= here
    return None if fits else f"{reason}, which cannot run it although it is version-compatible"


def _other_card(facts: EngineFacts, machine: Machine) -> str | None:
    if machine.gpu is None:
        return NO_CARD
    here = machine.compute_capability or ""
    if facts.runtime == "tensorrt-rtx":
        least = facts.compute_capability or FIRST_OF_RTX
        if not runs_on(facts.runtime, here):
            return f"tensorrt-rtx does not run on {machine.gpu} (compute capability {here or 'unknown'})"
        alone = least == TURING
        fits = here == least if alone else _numbers(here) >= _numbers(least)
        built_for = f"compute capability {least}{'' if alone else ' or newer'}"
        return None if fits else f"it is for {built_for}, and {machine.gpu} has {here}"
    if facts.gpu == machine.gpu and machine.compute_capability in (None, facts.compute_capability):
        return None
    reason = (
        f"it was built on {facts.gpu} (compute capability {facts.compute_capability}), "
        f"and this is {machine.gpu} ({here or 'unknown'})"
    )
    if "hardware-compatible" not in facts.options:
        return reason
    oldest = min(_numbers(facts.compute_capability or ""), _numbers(here))
    return None if oldest >= _FIRST_HARDWARE_COMPATIBLE else f"{reason}; hardware-compatible reaches down to 8.0"


def slug(word: str) -> str:
    """A word as part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", word.lower()).strip("-")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
