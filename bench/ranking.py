"""Ranking at the size of the field's data sets: ours, a plain argsort and torchreid's, beside the bare matrix product.

    python bench/ranking.py [--size market1501 | msmt17] [--dtype float32] [--width 2048] [--repeats 3]

Draws embeddings around one centre for each identity, labels as many and as uneven as the data set's, and gives both to
each way in turn, each in a process of its own: so the peak of its memory, above the embeddings, is its own. The bare
matrix product (float32, one call) is the floor: nothing that needs every distance is faster. It is timed again beside
each way, in turn with it and in its process, since a shared machine changes its speed from minute to minute. Prints the
lowest time of the repeats and its ratio to the lowest of the product beside it, and checks that all ways agree on mAP
and rank-1 to 1e-6; to 1e-5 with torchreid's compiled ranking, which adds up in float32.

The plain argsort and torchreid need the whole matrix of distances and the order of every row in memory; where this
machine has not enough, that is said and they are left out. torchreid's ranking is taken from the installed package, the
compiled one too if it was built, without importing the package, which would ask for torchvision, SciPy and others.
"""

import argparse
import importlib.util
import multiprocessing
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from drawn import GIB, SIZES, Drawn, draw, peak_memory

from reidkit.imaging import available_cores
from reidkit.metrics.distance import compare
from reidkit.metrics.ranking import rank_gallery

CYTHON = "torchreid, Cython"


class Scores(NamedTuple):
    """What all ways have to agree on."""

    mean_ap: float
    rank1: float


class Measured(NamedTuple):
    """Of one way: its lowest time and that of the product beside it, the peak of memory above the embeddings, and its
    scores unless it has none."""

    seconds: float
    product: float
    memory: int
    scores: Scores | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="market1501")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float32")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    size = SIZES[options.size]
    pairs = size.queries * size.gallery
    print(f"{options.size}: {size.queries:,} x {size.gallery:,}, {options.width} wide, {options.dtype}")
    print(f"{available_cores()} cores, NumPy {np.__version__}, {available_memory() / GIB:.0f} GiB of memory available")
    measured: dict[str, Measured] = {}
    for name, (rank, bytes_per_pair) in ways().items():
        needed, there = bytes_per_pair * pairs, available_memory()
        if needed > there:
            print(f"{name}: left out, it needs {needed / GIB:.0f} GiB and {there / GIB:.0f} GiB are available")
            continue
        found = in_own_process(rank, options.size, options.width, options.dtype, options.repeats)
        if found is None:
            print(f"{name}: its process ended without a result (killed for its memory?)")
        else:
            measured[name] = found
    show(measured)


def ways() -> dict[str, tuple[Callable[[Drawn], Scores | None], int]]:
    """Every way to rank, with the bytes that it or the product beside it takes for each pair."""
    found: dict[str, tuple[Callable[[Drawn], Scores | None], int]] = {
        "matrix product": (product, 4),
        "NumPy argsort": (plain_argsort, 13),
    }
    if importlib.util.find_spec("torchreid") is None:
        print("torchreid is not installed: its ranking is left out")
    else:
        found["torchreid, Python"] = (torchreid_python, 21)
        if compiled_file() is None:
            print("torchreid is installed without its compiled ranking: only the Python one is measured")
        else:
            found[CYTHON] = (torchreid_cython, 29)
    found["reidkit"] = (ours, 4)  # of the product, which is timed beside it
    return found


def in_own_process(rank: Callable[[Drawn], Scores | None], *arguments: str | int) -> Measured | None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(sender, rank, *arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()


def measure(sender, rank: Callable[[Drawn], Scores | None], size: str, width: int, dtype: str, repeats: int) -> None:
    drawn = draw(SIZES[size], width, dtype)
    np.matmul(drawn.query[:256].astype(np.float32), drawn.query[:256].astype(np.float32).T)  # starts its threads
    before = peak_memory()
    seconds, scores = timed(rank, drawn)
    memory = peak_memory() - before  # before the product adds its own
    times, floors = [seconds], []
    for repeat in range(repeats):
        floors.append(timed(product, drawn)[0])
        if repeat:
            times.append(timed(rank, drawn)[0])
    sender.send(Measured(min(times), min(floors), memory, scores))


def timed(rank: Callable[[Drawn], Scores | None], drawn: Drawn) -> tuple[float, Scores | None]:
    started = time.perf_counter()
    scores = rank(drawn)
    return time.perf_counter() - started, scores


def product(drawn: Drawn) -> None:
    query, gallery = (rows.astype(np.float32, copy=False) for rows in (drawn.query, drawn.gallery))
    np.matmul(query, gallery.T)


def whole_matrix(drawn: Drawn) -> np.ndarray:
    """Distances that sort as the cosine's; the embeddings are of unit length."""
    matrix = drawn.query.astype(np.float32, copy=False) @ drawn.gallery.astype(np.float32, copy=False).T
    np.subtract(1, matrix, out=matrix)
    return matrix


def plain_argsort(drawn: Drawn) -> Scores:
    """What one writes first: the whole matrix, every row sorted."""
    order = np.argsort(whole_matrix(drawn), axis=1)
    query, gallery = drawn.query_labels, drawn.gallery_labels
    precisions, firsts = [], []
    for row, pid, camid in zip(order, query.pids, query.camids, strict=True):
        same = gallery.pids[row] == pid
        hits = same[~(same & (gallery.camids[row] == camid))]
        ranks = np.flatnonzero(hits) + 1
        if len(ranks):
            precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
            firsts.append(ranks[0] == 1)
    return Scores(float(np.mean(precisions)), float(np.mean(firsts)))


def ours(drawn: Drawn) -> Scores:
    ranking = rank_gallery(compare(drawn.query, drawn.gallery), drawn.query_labels, drawn.gallery_labels)
    return Scores(ranking.mean_ap, ranking.cmc(1))


def torchreid_python(drawn: Drawn) -> Scores:
    return as_scores(module("torchreid_rank", torchreid_file("rank.py")).eval_market1501, drawn)


def torchreid_cython(drawn: Drawn) -> Scores:
    return as_scores(module("rank_cy", compiled_file()).eval_market1501_cy, drawn)


def as_scores(evaluate: Callable[..., tuple[np.ndarray, float]], drawn: Drawn) -> Scores:
    query, gallery = drawn.query_labels, drawn.gallery_labels
    curve, mean_ap = evaluate(whole_matrix(drawn), query.pids, gallery.pids, query.camids, gallery.camids, 50)
    return Scores(float(mean_ap), float(curve[0]))


def torchreid_file(pattern: str) -> Path | None:
    """A file of the installed package, wherever its version keeps the metrics; nothing is imported."""
    spec = importlib.util.find_spec("torchreid")
    folders = [] if spec is None else spec.submodule_search_locations or []
    for folder in folders:
        for metrics in ("metrics", "reid/metrics"):
            for file in sorted(Path(folder, metrics).glob(pattern)):
                return file
    return None


def compiled_file() -> Path | None:
    """Torchreid's compiled ranking, where it was built."""
    return torchreid_file("rank_cylib/rank_cy.*.so")


def module(name: str, file: Path | None) -> ModuleType:
    spec = None if file is None else importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"torchreid is installed, but its ranking is not where it was expected ({name})")
    loaded = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it would rather be compiled
        spec.loader.exec_module(loaded)
    return loaded


def available_memory() -> int:
    """Bytes that could be had now; where the system does not say, a number that leaves nothing out."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 60
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def show(measured: dict[str, Measured]) -> None:
    columns = f"{'seconds':>8} {'product':>8} {'ratio':>7} {'peak above the embeddings':>26} {'mAP':>9} {'rank-1':>9}"
    print(f"{'':<18} {columns}")
    for name, (seconds, floor, memory, scores) in measured.items():
        found = "" if scores is None else f"{scores.mean_ap:>9.6f} {scores.rank1:>9.6f}"
        times = f"{seconds:>8.2f} {floor:>8.2f} {seconds / floor:>6.2f}x"
        print(f"{name:<18} {times} {memory / GIB:>22.2f} GiB {found}")
    scores = {name: np.array(way.scores) for name, way in measured.items() if way.scores is not None}
    if "reidkit" not in scores:
        raise SystemExit("reidkit itself was left out (see above), so there is nothing to compare the others with")
    for name, values in scores.items():
        limit = 1e-5 if name == CYTHON else 1e-6
        if np.abs(values - scores["reidkit"]).max() > limit:
            raise SystemExit(f"{name} and reidkit do not agree to {limit:g}")
    print(f"all {len(scores)} rankings agree on mAP and rank-1" if len(scores) > 1 else "only reidkit was measured")


if __name__ == "__main__":
    main()
