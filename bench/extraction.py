"""From picture files to embeddings: does decoding keep the engine fed?

    python bench/extraction.py BUNDLE PICTURES [--runtime onnxruntime] [--count 1024]

Times, in one run and in turn: the engine alone on ready crops; decoding alone in one thread, in threads and in
processes; one picture after the other (decode, then embed); and `embed_files`, which decodes while the engine runs.
Beside each stands the processor time of this process alone, without its workers. The bound is what two stages that
share the same cores can reach: the sum of their times, with the faster way to decode.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from reidkit.decoding import stream_crops
from reidkit.imaging import available_cores, image_files, load_crop
from reidkit.runtime import load
from reidkit.runtime.pipeline import embed_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", help="of the arithmetic (default: the engine's own)")
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    embedder = load(options.bundle, options.runtime, device=options.device, precision=options.precision)
    spec = embedder.spec.input
    files = image_files(options.pictures)[: options.count]
    crops = np.stack([load_crop(file, spec) for file in files])
    batches = [crops[start : start + options.batch] for start in range(0, len(crops), options.batch)]
    work: dict[str, Callable[[], object]] = {
        "engine alone": lambda: [embedder.embed(batch) for batch in batches],
        "decoding alone, one thread": lambda: decode(1, processes=False),
        "decoding alone, threads": lambda: decode(None, processes=False),
        "decoding alone, processes": lambda: decode(None, processes=True),
        "one after the other": lambda: [embedder.embed(load_crop(file, spec)[None]) for file in files],
        "embed_files": lambda: embed_files(embedder, files, batch_size=options.batch),
    }

    def decode(workers: int | None, *, processes: bool) -> None:
        for _ in stream_crops(files, spec, workers=workers, ahead=4 * options.batch, processes=processes):
            pass

    embedder.embed(batches[0])
    times: dict[str, list[float]] = {name: [] for name in work}
    own: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(options.repeats):
        for name, call in work.items():
            started, spent = time.perf_counter(), time.process_time()
            call()
            times[name].append(time.perf_counter() - started)
            own[name].append(time.process_time() - spent)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{options.bundle.name} on {options.runtime}, {len(files)} pictures, {available_cores()} cores")
    for name, seconds in medians.items():
        spent = 1e6 * statistics.median(own[name]) / len(files)
        print(f"{name:<28} {len(files) / seconds:>8.1f} images/s {spent:>8.0f} us of this process an image")
    decoding = min(medians["decoding alone, threads"], medians["decoding alone, processes"])
    bound = medians["engine alone"] + decoding
    print(f"embed_files reaches {bound / medians['embed_files']:.0%} of the bound on shared cores,")
    print(f"{medians['one after the other'] / medians['embed_files']:.2f} x one after the other")


if __name__ == "__main__":
    main()
