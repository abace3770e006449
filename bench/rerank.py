"""k-reciprocal re-ranking at the size of a data set: time of each stage and peak memory, beside the dense definition.

    python bench/rerank.py [--size market1501|msmt17] [--dense-size 6000]

Every line is measured in a process of its own, whose peak holds everything: interpreter, embeddings, work. The dense
definition is the one of the field, in NumPy and float32: whole matrices of all crops with each other. It is measured at
the size that it is given (queries and gallery together), beside ours at the same size; nothing is extrapolated.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from reidkit.imaging import available_cores
from reidkit.index import KReciprocal, rerank
from reidkit.metrics.distance import distance_blocks

SIZES = {"market1501": (3_368, 19_732, 750), "msmt17": (11_659, 82_161, 3_060)}  # queries, gallery, identities
MEMORY = 1 << 30


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
    queries, gallery, people = SIZES[options.size]
    whole = {"queries": queries, "gallery": gallery, "people": people, "dim": options.dim, "memory": options.memory}
    print(f"{options.size}: {queries} queries, {gallery} gallery crops, {options.dim}-d, {available_cores()} cores")
    show("bare product of all crops", whole | {"what": "product"})
    show("reidkit", whole | {"what": "ours"})
    if options.dense_size:
        share = options.dense_size / (queries + gallery)
        asked, identities = round(share * queries), max(2, round(share * people))
        part = whole | {"queries": asked, "gallery": options.dense_size - asked, "people": identities}
        print(f"{options.dense_size} crops of the same kind, {asked} of them queries")
        ours = show("reidkit", part | {"what": "ours"})
        dense = show("dense definition", part | {"what": "dense"})
        print(f"largest difference of a distance: {np.abs(ours - dense).max():.1e} (of the first query)")


def show(name: str, job: Mapping[str, object]) -> np.ndarray:
    """Runs a job in a fresh process, prints what it took and gives the distances of the first query."""
    command = [sys.executable, str(Path(__file__)), "--worker", json.dumps(dict(job))]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in answer["stages"].items())
    total = sum(answer["stages"].values())
    print(f"  {name:<26} {total:>7.1f} s  peak {answer['peak']:>7.0f} MiB, {answer['before']:.0f} before  ({stages})")
    return np.array(answer["first"])


def work(job: Mapping[str, int | str]) -> None:
    queries, gallery, people, dim, memory = (int(job[key]) for key in ("queries", "gallery", "people", "dim", "memory"))
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((people, dim), dtype=np.float32)
    query, crops = (crowd(rng, centers, count) for count in (queries, gallery))
    before = peak()
    watch = Watch()
    first = []
    if job["what"] == "product":
        every = np.empty((512, queries + gallery), dtype=np.float32)
        for side in (query, crops):
            for start in range(0, len(side), 512):
                part = side[start : start + 512]
                np.matmul(part, query.T, out=every[: len(part), :queries])
                np.matmul(part, crops.T, out=every[: len(part), queries:])
        watch.ended("product")
    elif job["what"] == "ours":
        count = queries + gallery
        ranked: Callable[[int, int], None] = lambda done, _: watch.ended("ranking") if done == count else None  # noqa: E731
        distances = rerank(query, crops, KReciprocal(), memory=memory, progress=ranked)
        watch.ended("encoding")
        for _, block in distance_blocks(distances, memory=memory):
            first = first or block[0].tolist()
        watch.ended("final distances")
    else:
        first = dense(query, crops, KReciprocal(), watch)[0].tolist()
    print(json.dumps({"stages": watch.stages, "before": before, "peak": peak(), "first": first}))


class Watch:
    """Seconds between one call and the next, by stage."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = time.perf_counter()

    def ended(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages[stage] = now - self._last
        self._last = now


def peak() -> float:
    """MiB that this process has held at most (Linux counts KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def crowd(rng: np.random.Generator, centers: np.ndarray, count: int) -> np.ndarray:
    """Crops scattered around the points of people; one in ten shows a stranger."""
    crops = rng.standard_normal((count, centers.shape[1]), dtype=np.float32)
    crops *= 1.3
    for row, person in enumerate(rng.integers(0, len(centers), count)):
        if rng.random() < 0.9:
            crops[row] += centers[person]
    return crops


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
