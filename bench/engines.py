"""What our Python around a TensorRT engine costs, and what a call takes of memory.

    python bench/engines.py BUNDLE [--precision float16] [--via network parser] [--batch 1 4 16 64] [--images FOLDER]

Engines are built where the store has none. For each way and batch, medians of wall time in one run, in rounds that take
turns: a bare loop over TensorRT's own `execute_async_v3` with everything else prepared, the same as one captured graph,
our `embed_device` (crops and embeddings stay on the card) and our `embed` (from and to arrays of the host). Beside them
GPU time by events, how often memory was taken during the calls, and how much of the card they left behind.
With `--images`, embeddings of pictures from disk: images/s, what decoding alone gives, and how busy the card was.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from reidkit.bundle import open_bundle
from reidkit.decoding import stream_crops
from reidkit.deploy.build import build_engine
from reidkit.imaging import available_cores
from reidkit.runtime import cuda, load
from reidkit.runtime.device_arrays import DeviceArray
from reidkit.runtime.pipeline import embed_files
from reidkit.runtime.tensorrt import TensorRtEmbedder

_ROUNDS, _WARM = 300, 20


def main() -> None:
    options = arguments()
    bundle = open_bundle(options.bundle)
    spec = bundle.manifest.input
    crops = np.random.default_rng(0).integers(0, 256, (max(options.batch), spec.height, spec.width, 3), dtype=np.uint8)
    for via in options.via:
        started = time.perf_counter()
        facts = build_engine(
            bundle, options.runtime, precision=options.precision, via=via, batches=options.batch, effort=options.effort
        )
        opened = time.perf_counter()
        engine = load(bundle, options.runtime, precision=options.precision, via=via)
        assert isinstance(engine, TensorRtEmbedder)
        print(
            f"\n{bundle.path.name}, {options.runtime} {facts.version} {options.precision} by {via} on {facts.gpu}: "
            f"{facts.size / 1e6:.1f} MB, built in {facts.build_seconds:.0f} s (this time {opened - started:.0f} s), "
            f"opened in {time.perf_counter() - opened:.1f} s, {engine.device_memory >> 20} MiB of the card"
        )
        print(
            "batch   GPU ms    bare   graph  device    host (ms, wall)  graph-bare  device-bare us  taken  bytes left"
        )
        for batch in options.batch:
            print(row(engine, crops[:batch], batch), flush=True)
        if options.images:
            pipeline(engine, sorted(options.images.rglob("*.jpg")), max(options.batch))


def row(engine: TensorRtEmbedder, crops: np.ndarray, batch: int) -> str:
    source = DeviceArray.new(crops.shape, np.dtype(np.uint8), device=0)
    target = DeviceArray.new((batch, engine.spec.dim), np.dtype(np.float32), device=0)
    gpu = 1e3 * float(np.median(engine.device_seconds(batch, _ROUNDS)))
    with engine._lane() as lane:
        bare, graph = bare_loops(lane, source, target, batch)
        ways: list[Callable[[], object]] = [bare, graph]
        for way in ways:
            for _ in range(_WARM):
                way()
        times = timed(ways)
    calls: list[Callable[[], object]] = [
        lambda: engine.embed_device(source, out=target),
        lambda: engine.embed(crops),
    ]
    for call in calls:
        for _ in range(_WARM):
            call()
    free, taken = cuda.free_memory()[0], cuda.allocations()
    times += timed(calls)
    taken, left = cuda.allocations() - taken, free - cuda.free_memory()[0]
    bare_ms, graph_ms, device_ms, host_ms = times
    return (
        f"{batch:5d} {gpu:8.4f} {bare_ms:7.4f} {graph_ms:7.4f} {device_ms:7.4f} {host_ms:7.4f}"
        f" {1e3 * (graph_ms - bare_ms):27.1f} {1e3 * (device_ms - min(bare_ms, graph_ms)):15.1f} {taken:6d} {left:11d}"
    )


def bare_loops(lane, source: DeviceArray, target: DeviceArray, batch: int) -> tuple[Callable[[], object], ...]:
    """The least that can be done: enqueue and wait; and launch and wait."""
    slot = lane._slots[0]
    addresses = [array.__cuda_array_interface__["data"][0] for array in (source, target)]
    graph = lane._graph(slot, batch, *addresses, to_host=False)
    number = slot.stream.number
    context = slot.graphs[(batch, *addresses, False)].context

    def bare() -> None:
        context.execute_async_v3(number)
        slot.stream.synchronize()

    def launched() -> None:
        slot.stream.launch(graph)
        slot.stream.synchronize()

    return bare, launched


def timed(ways: list[Callable[[], object]]) -> list[float]:
    """Median milliseconds of each, taken in turns."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(_ROUNDS):
        for way, series in zip(ways, times, strict=True):
            started = time.perf_counter()
            way()
            series.append(1e3 * (time.perf_counter() - started))
    return [float(np.median(series)) for series in times]


def pipeline(engine: TensorRtEmbedder, files: list[Path], batch: int) -> None:
    """From a folder on disk to embeddings."""
    for _ in stream_crops(files, engine.spec.input):
        pass  # the file system's cache holds them now
    started = time.perf_counter()
    for _ in stream_crops(files, engine.spec.input):
        pass
    decode = len(files) / (time.perf_counter() - started)
    gpu = float(np.median(engine.device_seconds(batch, 50))) / batch
    started = time.perf_counter()
    embed_files(engine, files, batch_size=batch)
    rate = len(files) / (time.perf_counter() - started)
    print(
        f"{len(files)} JPEG files, {available_cores()} cores: {rate:,.0f} images/s; decoding alone {decode:,.0f}; "
        f"the engine alone {1 / gpu:,.0f}; the card was busy {100 * rate * gpu:.0f} % of the time"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runtime", default="tensorrt")
    parser.add_argument("--precision", default="float16")
    parser.add_argument("--via", nargs="+", default=["network", "parser"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--effort", type=int, help="of the builder, 0 to 5")
    parser.add_argument("--images", type=Path, help="a folder of JPEG files")
    return parser.parse_args()


if __name__ == "__main__":
    main()
