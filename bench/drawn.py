"""What the benchmarks of embeddings share: embeddings drawn as many and as mixed as a data set's, and peak memory."""

import resource
import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reidkit.metrics.junk import Labels
from reidkit.types import DISTRACTOR

GIB = 1 << 30


@dataclass(frozen=True)
class Size:
    """Numbers of a data set's test set; distractors are a share of the gallery."""

    queries: int
    gallery: int
    identities: int
    cameras: int
    distractors: float
    noise: float  # beside centres of length 1; chosen for an mAP of about 0.85 at a width of 2048


SIZES = {
    "market1501": Size(3368, 19732, 750, 6, 0.14, 2.9),
    "msmt17": Size(11659, 82161, 3060, 15, 0.0, 2.7),
}


class Drawn(NamedTuple):
    """What a ranking is made of."""

    query: np.ndarray
    gallery: np.ndarray
    query_labels: Labels
    gallery_labels: Labels


def draw(size: Size, width: int, dtype: str) -> Drawn:
    """Embeddings of unit length, in place, so that drawing leaves no peak of memory behind."""
    random = np.random.default_rng(0)
    # Few people are seen often and many seldom, as in a station.
    seen = random.gamma(3.0, size=size.identities)
    seen /= seen.sum()
    centers = random.standard_normal((size.identities, width), dtype=np.float32)

    def crops(count: int, distractors: float) -> tuple[np.ndarray, Labels]:
        pids = random.choice(size.identities, count, p=seen)
        pids[random.random(count) < distractors] = DISTRACTOR
        rows = np.empty((count, width), dtype)
        for row, pid in zip(rows, pids, strict=True):
            # Some crops are clear and some are blurred or half hidden.
            blur = np.float32(size.noise * random.uniform(0.5, 1.5))
            values = blur * random.standard_normal(width, dtype=np.float32)
            values += centers[pid] if pid != DISTRACTOR else random.standard_normal(width, dtype=np.float32)
            row[:] = values / np.linalg.norm(values)
        return rows, Labels(pids, random.integers(0, size.cameras, count))

    (query, query_labels), (gallery, gallery_labels) = crops(size.queries, 0), crops(size.gallery, size.distractors)
    return Drawn(query, gallery, query_labels, gallery_labels)


def peak_memory() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
