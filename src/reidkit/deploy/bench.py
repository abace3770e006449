"""Latency of a bundle on an engine: in wall time, with and without decoding and resizing; and by the device's clock."""

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from reidkit.errors import ConfigError, InputError
from reidkit.golden import golden_crops
from reidkit.imaging import available_cores, load_crop
from reidkit.manifest import Latency
from reidkit.runtime.engine_facts import EngineFacts
from reidkit.runtime.machine import machine as machine  # noqa: PLC0414 (so that one import serves whoever times)
from reidkit.types import Embedder, Progress, Timed, no_progress

BATCHES = (1, 4, 16, 64)

_MOST_RUNS = 1000  # that a device times at once: each takes an event


@runtime_checkable
class Built(Protocol):
    """An embedder whose engine lies in a store."""

    @property
    def facts(self) -> EngineFacts:
        """Of the engine."""
        ...


def bench(
    embedder: Embedder,
    *,
    batches: Sequence[int] = BATCHES,
    images: Sequence[Path] = (),
    seconds: float = 1.0,
    progress: Progress = no_progress,
) -> list[Latency]:
    """Times an open engine at each batch size: first on ready crops, then from JPEG to embedding.

    Where the engine keeps time of its own (`reidkit.types.Timed`), the row of the ready crops has that, too: as many
    runs as were timed by the wall, with crops and embeddings staying on the device.

    Args:
        embedder: an open model.
        batches: crops a call.
        images: files to decode; empty takes golden crops, encoded as JPEG in memory at twice the input size.
        seconds: to spend on each row, after a warm-up; at least five batches are timed whatever they take.
        progress: over the rows.

    Raises:
        ConfigError: a batch size below 1.
        ImageError: one of `images` cannot be decoded.
    """
    if not batches or min(batches) < 1:
        raise ConfigError("A batch size cannot be this", got=list(batches), expected="1 or above")
    spec = embedder.spec.input
    sources = list(images) or _jpegs(embedder)
    rows: list[Latency] = []
    with ThreadPoolExecutor(available_cores()) as pool:
        files = itertools.cycle(sources)  # each batch takes the next ones: the same file would come from a cache

        def load(batch: int) -> np.ndarray:
            return np.stack(list(pool.map(partial(load_crop, spec=spec), itertools.islice(files, batch))))

        for batch in batches:
            crops = load(batch)
            rows.append(_row(embedder, batch, False, _time(lambda crops=crops: embedder.embed(crops), seconds)))
            progress(len(rows), 2 * len(batches))
            rows.append(_row(embedder, batch, True, _time(lambda n=batch: embedder.embed(load(n)), seconds)))
            progress(len(rows), 2 * len(batches))
    return rows


def _row(embedder: Embedder, batch: int, decode: bool, times: list[float]) -> Latency:
    spec, facts = embedder.spec, embedder.facts if isinstance(embedder, Built) else None
    median = float(np.median(times))
    gpu_ms = None if decode else device_ms(embedder, batch, len(times))
    return Latency(
        runtime=spec.runtime,
        precision=spec.precision,
        device=spec.device,
        machine=machine(spec.device),
        batch=batch,
        decode=decode,
        median_ms=median * 1e3,
        p90_ms=float(np.percentile(times, 90)) * 1e3,
        images_per_second=batch / median,
        runs=len(times),
        via=None if facts is None else facts.via,
        gpu_ms=gpu_ms,
        device_memory=embedder.device_memory if isinstance(embedder, Timed) else None,
        engine_bytes=None if facts is None else facts.size,
        build_seconds=None if facts is None else facts.build_seconds,
    )


def device_ms(embedder: Embedder, batch: int, runs: int) -> float | None:
    """Median of the device's own time for a batch, milliseconds, where it keeps one.

    Args:
        embedder: an open engine.
        batch: crops.
        runs: to time; a thousand at most.

    Returns:
        None where there is no such clock, or the batch is more than the engine takes at once.
    """
    if not isinstance(embedder, Timed):
        return None
    try:
        return float(np.median(embedder.device_seconds(batch, min(runs, _MOST_RUNS)))) * 1e3
    except InputError:
        return None


def _time(work: Callable[[], object], seconds: float) -> list[float]:
    for _ in range(2):  # the first calls of an engine allocate and choose kernels
        work()
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return times


def _jpegs(embedder: Embedder) -> list[bytes]:
    spec = embedder.spec.input
    encoded = []
    for crop in golden_crops(spec):
        buffer = BytesIO()
        larger = Image.fromarray(crop).resize((2 * spec.width, 2 * spec.height), Image.Resampling.BICUBIC)
        larger.save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded
