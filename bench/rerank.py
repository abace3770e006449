"""k-reciprocal re-ranking at the size of a data set: time of each stage and peak memory, beside the dense definition.

    python bench/rerank.py [--size market1501|msmt17] [--dense-size 6000]

Every line is measured in a process of its own, whose peak holds everything: interpreter, embeddings, work. The dense
definition is the one of the field, in NumPy and float32: whole matrices of all crops with each other. It is measured at
the size that it is given (queries and gallery together), beside ours at the same size; nothing is extrapolated. All
distances of the two have to agree to 1e-6.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from drawn import SIZES, Size, draw, peak_memory

from reidkit.imaging import available_cores
from reidkit.index import KReciprocal, rerank
from reidkit.metrics.distance import distance_blocks

MIB = 1 << 20
MEMORY = 1 << 30
LARGEST_DIFFERENCE = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="market1501")
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--dense-size", type=int, default=6_000, help="crops, or 0 to leave the dense definition out")
    parser.add_argument("--memory", type=int, default=MEMORY, help="bytes that ours may take at a time")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
        return
    size = SIZES[options.size]
    job = {"size": options.size, "crops": size.queries + size.gallery, "dim": options.dim, "memory": options.memory}
    print(f"{options.size}: {size.queries} queries, {size.gallery} gallery crops, {options.dim}-d")
    print(f"{available_cores()} cores, NumPy {np.__version__}")
    show("bare product of all crops", job | {"what": "product"})
    show("reidkit", job | {"what": "ours"})
    if options.dense_size:
        job["crops"] = options.dense_size
        print(f"{options.dense_size} crops of the same kind, {part(size, options.dense_size).queries} of them queries")
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = Path(folder, "ours.npy"), Path(folder, "dense.npy")
            show("reidkit", job | {"what": "ours", "out": str(ours)})
            show("dense definition", job | {"what": "dense", "out": str(theirs)})
            difference = float(np.abs(np.load(ours) - np.load(theirs)).max())
        print(f"largest difference of a distance: {difference:.1e}")
        if not difference <= LARGEST_DIFFERENCE:
            raise SystemExit(f"reidkit and the dense definition do not agree to {LARGEST_DIFFERENCE:g}")


def part(size: Size, crops: int) -> Size:
    """A share of a data set, so many crops in all."""
    share = crops / (size.queries + size.gallery)
    queries = round(share * size.queries)
    return replace(size, queries=queries, gallery=crops - queries, identities=max(2, round(share * size.identities)))


def show(name: str, job: Mapping[str, object]) -> None:
    """Runs a job in a fresh process and prints what it took."""
    command = [sys.executable, str(Path(__file__)), "--worker", json.dumps(dict(job))]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # its traceback goes where ours do
    if ended.returncode:
        raise SystemExit(f"{name}: its process ended with {ended.returncode} (killed for its memory, if below 0)")
    answer = json.loads(ended.stdout)
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in answer["stages"].items())
    total = sum(answer["stages"].values())
    print(f"  {name:<26} {total:>7.1f} s  peak {answer['peak']:>7.0f} MiB, {answer['before']:.0f} before  ({stages})")


def work(job: Mapping[str, Any]) -> None:
    """Does a job, and tells what it took."""
    drawn = draw(part(SIZES[job["size"]], job["crops"]), job["dim"], "float32")
    before, watch = peak_memory(), Watch()
    if job["what"] == "product":
        product(drawn.query, drawn.gallery)
        watch.ended("product")
    elif job["what"] == "ours":
        ours(drawn.query, drawn.gallery, job["memory"], watch, out=job.get("out"))
    else:
        np.save(job["out"], dense(drawn.query, drawn.gallery, KReciprocal(), watch))
    took = {"before": before / MIB, "peak": peak_memory() / MIB}
    print(json.dumps({"stages": watch.stages} | took))


def product(query: np.ndarray, gallery: np.ndarray) -> None:
    """All crops with each other, block by block over the same memory: nothing that needs every distance is faster."""
    every = np.empty((512, len(query) + len(gallery)), dtype=np.float32)
    for side in (query, gallery):
        for start in range(0, len(side), 512):
            rows = side[start : start + 512]
            np.matmul(rows, query.T, out=every[: len(rows), : len(query)])
            np.matmul(rows, gallery.T, out=every[: len(rows), len(query) :])


def ours(query: np.ndarray, gallery: np.ndarray, memory: int, watch: "Watch", out: str | None) -> None:
    """Goes through the distances after re-ranking, and writes them where somebody wants them."""
    count = len(query) + len(gallery)
    ranked: Callable[[int, int], None] = lambda done, _: watch.ended("ranking") if done == count else None  # noqa: E731
    distances = rerank(query, gallery, KReciprocal(), memory=memory, progress=ranked)
    watch.ended("encoding")
    found = None if out is None else np.lib.format.open_memmap(out, "w+", np.float32, shape=distances.shape)
    for rows, block in distance_blocks(distances, memory=memory):
        if found is not None:
            found[rows] = block
    watch.ended("final distances")


class Watch:
    """Seconds between one call and the next, by stage."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = time.perf_counter()

    def ended(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages[stage] = now - self._last
        self._last = now


def dense(query: np.ndarray, gallery: np.ndarray, how: KReciprocal, watch: Watch) -> np.ndarray:
    """The definition with whole matrices in float32, as the field has it: four of all crops with each other."""
    crops = np.concatenate([query, gallery])
    crops /= np.linalg.norm(crops, axis=1, keepdims=True)
    distance = np.maximum(2 - 2 * (crops @ crops.T), 0)
    distance /= distance.max(axis=1, keepdims=True)
    order = np.argsort(distance, axis=1).astype(np.int32)
    watch.ended("ranking")
    count, half = len(crops), round(how.k1 / 2)
    encodings = np.zeros((count, count), dtype=np.float32)

    def mutual(crop: int, k: int) -> np.ndarray:
        near = order[crop, : k + 1]
        return near[(order[near, : k + 1] == crop).any(axis=1)]

    for crop in range(count):
        core = mutual(crop, how.k1)
        joined = [core]
        for candidate in core:
            theirs = mutual(candidate, half)
            if 3 * np.isin(theirs, core).sum() > 2 * len(theirs):
                joined.append(theirs)
        members = np.unique(np.concatenate(joined))
        weights = np.exp(-distance[crop, members])
        encodings[crop, members] = weights / weights.sum()
    means = np.stack([encodings[near].mean(axis=0) for near in order[:, : how.k2]])
    del encodings, order
    watch.ended("encoding")
    queries = len(query)
    sharing = [np.flatnonzero(column) for column in means.T]
    final = np.empty((queries, count), dtype=np.float32)
    for row in range(queries):
        shared = np.zeros(count, dtype=np.float32)
        for column in np.flatnonzero(means[row]):
            others = sharing[column]
            shared[others] += np.minimum(means[row, column], means[others, column])
        final[row] = (1 - how.weight) * (1 - shared / (2 - shared)) + how.weight * distance[row]
    watch.ended("final distances")
    return final[:, queries:]


if __name__ == "__main__":
    main()
