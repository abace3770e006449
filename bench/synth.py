"""The synthetic people: how fast they are drawn, and how hard they are for plain pixels.

    python bench/synth.py [--identities 60] [--seeds 0 1 2]

Prints crops a second, and the mAP across cameras of nearest neighbours in raw pixels (crop shrunk to 32 x 16, or
whole), which a useful data set keeps low and a trained network must leave behind.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from reidkit.data import load_split
from reidkit.data.synth import synthesize
from reidkit.decoding import stream_crops
from reidkit.imaging import available_cores
from reidkit.metrics.distance import compare
from reidkit.metrics.junk import labels_of
from reidkit.metrics.prepared import Metric
from reidkit.metrics.ranking import rank_gallery
from reidkit.types import Crop, InputSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=60)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    print(f"{options.identities} identities, {options.cameras} cameras, {available_cores()} cores")
    print(f"{'seed':>4} {'crops':>6} {'crops/s':>8}   mAP of raw pixels: {'32x16':>6} {'128x64':>7}")
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "people"
            started = time.perf_counter()
            synthesize(root, identities=options.identities, cameras=options.cameras, seed=seed)
            seconds = time.perf_counter() - started
            split = load_split(root)
            crops = sum(1 for _ in root.rglob("*.jpg"))
            scores = [raw_pixel_map(split.query, split.gallery, size) for size in ((32, 16), (128, 64))]
            print(f"{seed:>4} {crops:>6} {crops / seconds:>8.0f} {'':>20} {scores[0]:>6.3f} {scores[1]:>7.3f}")


def raw_pixel_map(query: tuple[Crop, ...], gallery: tuple[Crop, ...], size: tuple[int, int]) -> float:
    """The better of Euclidean and cosine distance."""
    asked, searched = (pixels(crops, InputSpec(*size)) for crops in (query, gallery))
    labels = labels_of(query), labels_of(gallery)
    metrics: tuple[Metric, ...] = ("euclidean", "cosine")
    return max(rank_gallery(compare(asked, searched, metric), *labels).mean_ap for metric in metrics)


def pixels(crops: tuple[Crop, ...], spec: InputSpec) -> np.ndarray:
    rows = [crop for crop in stream_crops([crop.path for crop in crops], spec) if not isinstance(crop, Exception)]
    return np.stack(rows).reshape(len(rows), -1).astype(np.float32)


if __name__ == "__main__":
    main()
