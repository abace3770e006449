"""Latency of a bundle on an engine, with and without decoding and resizing."""

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from reidkit.errors import ConfigError
from reidkit.golden import golden_crops
from reidkit.imaging import available_cores, load_crop
from reidkit.types import Embedder, Progress, no_progress

BATCHES = (1, 4, 16, 64)


@dataclass(frozen=True, slots=True)
class Latency:
    """One row of the table.

    Attributes:
        decode: whether the time includes reading, decoding and resizing the batch's JPEG files in threads.
        median_ms: wall time of one batch, milliseconds.
        p90_ms: nine of ten batches are at least this fast.
        images_per_second: batch over median; decoding and engine take turns here, in `embed_files` they overlap.
        runs: batches that were timed.
    """

    runtime: str
    precision: str
    device: str
    batch: int
    decode: bool
    median_ms: float
    p90_ms: float
    images_per_second: float
    runs: int


def bench(
    embedder: Embedder,
    *,
    batches: Sequence[int] = BATCHES,
    images: Sequence[Path] = (),
    seconds: float = 1.0,
    progress: Progress = no_progress,
) -> list[Latency]:
    """Times an open engine at each batch size: first on ready crops, then from JPEG to embedding.

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
    spec = embedder.spec
    median = float(np.median(times))
    return Latency(
        runtime=spec.runtime,
        precision=spec.precision,
        device=spec.device,
        batch=batch,
        decode=decode,
        median_ms=median * 1e3,
        p90_ms=float(np.percentile(times, 90)) * 1e3,
        images_per_second=batch / median,
        runs=len(times),
    )


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
