"""What was found to be the fastest on this machine: one engine, or several with a range of batches each."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias, get_args

import numpy as np
from jaxtyping import Float32, UInt8

from reidkit.bundle import Bundle
from reidkit.config import to_dict
from reidkit.errors import BundleError, ConfigError, ModelError, RuntimeMissing
from reidkit.runtime import ENGINES, load
from reidkit.runtime.contract import Opening, check_crops, require_precision
from reidkit.runtime.engine_facts import Choice, Pick
from reidkit.runtime.engine_store import choose_command, read_choice
from reidkit.runtime.machine import machine
from reidkit.types import Embedder, EmbedderSpec, Precision, Timed

Ranges: TypeAlias = Sequence[tuple[int | None, Embedder]]
"""Engines by the largest batch that each is for; None for all that are left."""


class DispatchingEmbedder:
    """Several engines of one bundle; the number of crops in a call decides which of them runs it.

    Args:
        ranges: engines in the order of their batches; the last one has no end.
    """

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = tuple(ranges)
        self.spec = _common_spec(ranges)

    def embed(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        """Maps crops to embeddings; see `reidkit.types.Embedder`."""
        check_crops(crops, self.spec)
        return self.engine_for(len(crops)).embed(crops)

    def engine_for(self, batch: int) -> Embedder:
        """The engine that runs a batch."""
        return next(engine for most, engine in self._ranges if most is None or batch <= most)


class TimedDispatchingEmbedder:
    """The same where every engine keeps its device's time (`reidkit.types.Timed`)."""

    def __init__(self, ranges: Ranges) -> None:
        self._embedder = DispatchingEmbedder(ranges)
        self._engines = {id(engine): engine for _, engine in ranges}.values()
        self.spec = self._embedder.spec

    @property
    def device_memory(self) -> int:
        """Bytes of the device that all of them hold."""
        return sum(engine.device_memory for engine in self._engines if isinstance(engine, Timed))

    def embed(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        """Maps crops to embeddings; see `reidkit.types.Embedder`."""
        return self._embedder.embed(crops)

    def device_seconds(self, batch: int, runs: int) -> list[float]:
        """Seconds of the device for each run of a batch, by the engine that runs it."""
        engine = self._embedder.engine_for(batch)
        assert isinstance(engine, Timed)
        return engine.device_seconds(batch, runs)


def open_embedder(bundle: Bundle, opening: Opening) -> Embedder:
    """Opens what was chosen for this machine; a single engine as it is.

    Raises:
        RuntimeMissing: nothing was chosen for this device, it cannot be opened any more or is another engine now; or
            another precision was asked for than it has.
        ConfigError: a way to the builder was asked for: that was chosen, too.
        BundleError: what was kept of the choice cannot be read.
    """
    if opening.via is not None:
        raise ConfigError(
            "The runtime auto has chosen how the network came to the builder",
            got=f"via {opening.via}",
            fix="leave it out, or name the runtime",
        )
    choice = find_choice(bundle, opening.device, precision=opening.precision)
    require_precision(opening, _lowest([pick.precision for pick in choice.picks]))
    opened: dict[Pick, Embedder] = {}  # an engine may have two ranges
    for pick in choice.picks:
        engine = replace(pick, most=None)
        if engine not in opened:
            opened[engine] = _open(bundle, pick, opening, choice.precision)
    ranges = [(pick.most, opened[replace(pick, most=None)]) for pick in choice.picks]
    if len(ranges) == 1:
        return ranges[0][1]
    timed = all(isinstance(engine, Timed) for _, engine in ranges)
    return TimedDispatchingEmbedder(ranges) if timed else DispatchingEmbedder(ranges)


def find_choice(bundle: Bundle, device: str, *, precision: Precision | None = None) -> Choice:
    """What was chosen for a bundle on this machine.

    Args:
        bundle: the model.
        device: as it was given when it was chosen.
        precision: that the command to choose in is to name; None where nobody asked for one.

    Raises:
        RuntimeMissing: nothing was, or for another graph.
        BundleError: what was kept cannot be read.
    """
    choice = read_choice(bundle, machine(device), device)
    if choice is None:
        raise RuntimeMissing(
            f"It was not yet found out which engine runs {bundle.path.name} fastest here",
            got=f"no choice for this graph on {device} of {machine(device)}",
            fix=choose_command(bundle, device=device, precision=precision),
        )
    return choice


def _open(bundle: Bundle, pick: Pick, opening: Opening, chosen_in: Precision) -> Embedder:
    reason = f"no engine is called {pick.runtime}"
    for name in ENGINES:
        if name == pick.runtime:
            try:
                engine = load(
                    bundle,
                    name,
                    device=opening.device,
                    threads=opening.threads,
                    precision=pick.precision,
                    via=pick.via,
                )
            except (RuntimeMissing, BundleError, ModelError) as error:
                raise _stale(bundle, pick, opening, chosen_in, error.problem) from error
            if engine.spec.build == pick.build:
                return engine
            reason = "it was built or quantised again since"
    raise _stale(bundle, pick, opening, chosen_in, reason)


def _stale(bundle: Bundle, pick: Pick, opening: Opening, chosen_in: Precision, reason: str) -> RuntimeMissing:
    return RuntimeMissing(
        f"What was fastest for {bundle.path.name} cannot be opened any more: {pick.runtime} in {pick.precision}",
        got=reason,
        fix=choose_command(bundle, device=opening.device, precision=chosen_in),
    )


def _common_spec(ranges: Ranges) -> EmbedderSpec:
    specs = [engine.spec for _, engine in ranges]
    told = [[most, to_dict(engine.spec)] for most, engine in ranges]
    return replace(
        specs[0],
        runtime="+".join(dict.fromkeys(spec.runtime for spec in specs)),
        precision=_lowest([spec.precision for spec in specs]),
        build=hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest(),
    )


def _lowest(precisions: Sequence[Precision]) -> Precision:
    return max(precisions, key=get_args(Precision).index)
