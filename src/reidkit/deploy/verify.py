"""Parity as a gate: an engine must give what the source framework gave, to within the tolerance of its precision.

On a data set it must find the same people, too: `measure_on` embeds and ranks, `check_accuracy` holds one against the
other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64

from reidkit.bundle import Bundle, Golden, file_sha256
from reidkit.calibration import Calibration
from reidkit.deploy.ways import Way, ways_of
from reidkit.errors import ImageError, InputError, ReidkitError
from reidkit.evaluate import EmbeddedBy, EmbeddedCrops, Report, compare_reports, embed_split, rank_embedded
from reidkit.evaluate.embedding_cache import EmbeddingCache
from reidkit.index import NO_NEIGHBOR, NearestScorer, Neighbors
from reidkit.metrics.bootstrap import PairedDifference
from reidkit.metrics.protocol import named_protocol
from reidkit.runtime import RuntimeName, usual_device
from reidkit.types import Batched, Embedder, EmbedderSpec, Precision, Progress, Split, Via, no_progress

MAX_MAP_DROP = 0.005
"""What an engine may lose of the reference's mAP, where nobody says; a fraction of 1."""

TOP = 10
"""Nearest crops of which the same have to be found."""

_ABSOLUTE = 1e-5  # of a value of an embedding of length 1: so much of a difference counts as none


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far embeddings may be from the golden ones.

    Attributes:
        relative: Euclidean length of the difference of any crop, over that of its golden embedding, at most.
        cosine: of any crop, at least.
        mean: what the means over the crops are held to, where single crops are held to less.
    """

    relative: float
    cosine: float
    mean: "Tolerance | None" = None

    @property
    def in_words(self) -> str:
        """Both limits, and those of the means."""
        each = f"max rel at most {self.relative:g}, min cosine at least {self.cosine:g}"
        if self.mean is None:
            return each
        return f"{each}; on the average {self.mean.relative:g} and {self.mean.cosine:g}"


TOLERANCES: dict[Precision, Tolerance] = {
    "float32": Tolerance(1e-4, 0.99999),
    "tf32": Tolerance(2e-2, 0.9999),
    "float16": Tolerance(2e-2, 0.9999),
    "bfloat16": Tolerance(5e-2, 0.999),
    # Golden crops are drawn, and may lie far from all that a table was made from: one is no measure of the others.
    "int8": Tolerance(4.5e-1, 0.9, mean=Tolerance(2.5e-1, 0.97)),
}


@dataclass(frozen=True, slots=True)
class Parity:
    """How near an engine comes to the golden embeddings, in the worst of the ways that it was asked for them.

    Attributes:
        max_abs: largest difference of a value.
        max_rel: largest Euclidean length of a difference, over that of the golden embedding.
        min_cosine: smallest cosine.
        mean_rel: of those lengths over all golden crops.
        mean_cosine: over all golden crops.
    """

    runtime: str
    device: str
    precision: Precision
    max_abs: float
    max_rel: float
    min_cosine: float
    mean_rel: float
    mean_cosine: float
    tolerance: Tolerance
    via: Via | None = None

    @property
    def passed(self) -> bool:
        """Whether every crop is within the tolerance, and the means are within theirs; a NaN never is."""
        limit, mean = self.tolerance, self.tolerance.mean
        if not (self.max_rel <= limit.relative and self.min_cosine >= limit.cosine):
            return False
        return mean is None or (self.mean_rel <= mean.relative and self.mean_cosine >= mean.cosine)

    @property
    def in_words(self) -> str:
        """What the tolerance looks at."""
        each = f"max rel {self.max_rel:.1e}, min cosine {self.min_cosine:.6f}"
        if self.tolerance.mean is None:
            return each
        return f"{each}; on the average {self.mean_rel:.1e} and {self.mean_cosine:.6f}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An engine that could not open the bundle, or not on that device, or not in that precision."""

    runtime: str
    device: str
    error: ReidkitError
    precision: Precision | None = None
    via: Via | None = None

    @property
    def passed(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True, slots=True)
class Measured:
    """A data set, embedded by one engine and ranked.

    Attributes:
        spec: of the engine.
        query: embedded.
        gallery: embedded.
        report: on both.
        nearest: of every query, the nearest crops that count.
    """

    spec: EmbedderSpec
    query: EmbeddedCrops
    gallery: EmbeddedCrops
    report: Report
    nearest: Neighbors


@dataclass(frozen=True, slots=True)
class Agreement:
    """What an engine makes of a data set, beside what the reference makes of it; fractions of 1.

    Attributes:
        reference: of the engine that is held to be right.
        engine: of the one that is checked.
        crops: that both embedded.
        max_abs: largest difference of a value, between embeddings of length 1.
        max_rel: the same as a share of the reference's value, beyond an absolute difference of 1e-5.
        min_cosine: smallest cosine between both embeddings of a crop.
        mean_cosine: over all crops.
        mean_ap: of the reference and of the engine.
        change: of mAP, query by query: the engine's minus the reference's, with its 95 % interval.
        rank1: change of rank-1 likewise.
        top: mean share of the reference's ten nearest crops that are among the engine's ten.
        max_drop: of mAP, that is allowed.
    """

    reference: EmbedderSpec
    engine: EmbedderSpec
    crops: int
    max_abs: float
    max_rel: float
    min_cosine: float
    mean_cosine: float
    mean_ap: tuple[float, float]
    change: PairedDifference
    rank1: PairedDifference
    top: float
    max_drop: float

    @property
    def least_cosine(self) -> float:
        """That every crop is held to; in int8, the mean."""
        limit = TOLERANCES[self.engine.precision]
        return (limit.mean or limit).cosine

    @property
    def passed(self) -> bool:
        """Whether no more mAP is lost than allowed, and every crop is as near as its precision is held to.

        In int8, crops are so on the average: some lie far from all that a table was made from.
        """
        rounded = TOLERANCES[self.engine.precision].mean is not None
        near = (self.mean_cosine if rounded else self.min_cosine) >= self.least_cosine
        return near and self.change.difference >= -self.max_drop


def verify(
    bundle: Bundle,
    runtimes: Sequence[RuntimeName],
    *,
    device: str | None = None,
    precisions: Sequence[Precision | None] = (None,),
    opener: Callable[..., Embedder] = Way.open,
) -> list[Parity | Refusal]:
    """Holds engines to a bundle's golden embeddings; one that cannot open it does not keep the others from it.

    Args:
        bundle: an open bundle.
        runtimes: to check; `reidkit.runtime.installed(bundle)` are those that are here and can open it.
        device: of the engines.
        precisions: of their arithmetic; None is what there is.
        opener: called with way, bundle and `device=`, in place of `Way.open`.

    Raises:
        BundleError: the golden file does not fit the manifest.
    """
    golden = bundle.golden()
    return [_held(bundle, way, golden, device, opener) for way in ways_of(bundle, runtimes, precisions, device=device)]


def _held(
    bundle: Bundle, way: Way, golden: Golden, device: str | None, opener: Callable[..., Embedder]
) -> Parity | Refusal:
    try:
        return replace(check_parity(opener(way, bundle, device=device), golden), via=way.via)
    except ReidkitError as error:
        return Refusal(way.runtime, device or usual_device(way.runtime), error, way.precision, way.via)


def check_parity(embedder: Embedder, golden: Golden) -> Parity:
    """Compares an open engine with golden embeddings, in every way that it may go wrong.

    All crops in one batch, each alone, and, for an engine that has other kernels for other batches (`types.Batched`),
    batches of those sizes in which crops come again and in another order, each as often as any other.

    Raises:
        InputError: no golden crop, or the engine's embeddings have another width.
    """
    if len(golden.crops) == 0:
        raise InputError("There is no golden crop to compare with", expected="at least one", fix="export it again")
    together = embedder.embed(golden.crops)
    if together.shape != golden.embeddings.shape:
        raise InputError(
            f"{embedder.spec.runtime} gives embeddings of another shape than the golden ones",
            got=together.shape,
            expected=golden.embeddings.shape,
        )
    batches = dict.fromkeys((1, *(embedder.batches if isinstance(embedder, Batched) else ())))
    worst = [_differences(together, golden.embeddings)]
    worst += [_differences(*_in_batches(embedder, golden, batch)) for batch in batches]
    return Parity(
        runtime=embedder.spec.runtime,
        device=embedder.spec.device,
        precision=embedder.spec.precision,
        max_abs=float(np.max([w[0] for w in worst])),
        max_rel=float(np.max([w[1].max() for w in worst])),
        min_cosine=float(np.min([w[2].min() for w in worst])),
        mean_rel=float(np.max([w[1].mean() for w in worst])),
        mean_cosine=float(np.min([w[2].mean() for w in worst])),
        tolerance=TOLERANCES[embedder.spec.precision],
    )


def measure_on(
    embedder: Embedder,
    split: Split,
    *,
    model: str = "",
    batch_size: int = 32,
    workers: int | None = None,
    cache: EmbeddingCache | None = None,
    progress: Progress = no_progress,
) -> Measured:
    """Embeds a data set and ranks it by cosine, under the protocol of its layout.

    Args:
        embedder: an open model.
        split: with query and gallery.
        model: what to call the model.
        batch_size: crops a call of the engine.
        workers: that decode, as in `reidkit.decoding.stream_crops`.
        cache: opened for this embedder.
        progress: over the crops.

    Raises:
        DataError: the split has no query or no gallery.
        ImageError: a picture cannot be decoded.
        InputError: no query has a match, or an embedding is not finite.
    """
    query, gallery = embed_split(
        embedder, split, batch_size=batch_size, workers=workers, cache=cache, progress=progress
    )
    spec = embedder.spec
    nearest = NearestScorer((len(query.crops), len(gallery.crops)), TOP)
    report = rank_embedded(
        query,
        gallery,
        split=split,
        embedded=EmbeddedBy(model, spec.runtime, spec.precision, spec.device),
        protocol=named_protocol(None, data_format=split.format),
        scorers=[nearest],
    )
    return Measured(spec, query, gallery, report, nearest.neighbors())


def check_accuracy(reference: Measured, engine: Measured, *, max_drop: float = MAX_MAP_DROP) -> Agreement:
    """Compares what two engines make of one data set.

    Args:
        reference: that is held to be right.
        engine: to check.
        max_drop: of mAP, that is allowed; a fraction of 1.

    Raises:
        InputError: they were measured on different data, or give embeddings of different widths.
    """
    comparison = compare_reports(reference.report, engine.report)
    mean_ap, rank1 = comparison.measures[:2]
    truth, got = (np.concatenate([m.query.embeddings, m.gallery.embeddings]) for m in (reference, engine))
    if truth.shape != got.shape:
        raise InputError(
            f"{engine.spec.runtime} gives embeddings of another width than the reference",
            got=got.shape[1],
            expected=truth.shape[1],
        )
    max_abs, max_rel, cosines = _unit_differences(got, truth)
    return Agreement(
        reference=reference.spec,
        engine=engine.spec,
        crops=len(truth),
        max_abs=max_abs,
        max_rel=max_rel,
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        mean_ap=(mean_ap.a, mean_ap.b),
        change=mean_ap.paired,
        rank1=rank1.paired,
        top=_shared(reference.nearest, engine.nearest),
        max_drop=max_drop,
    )


def seen_in_calibration(table: Calibration, split: Split) -> int:
    """How many pictures of a data set's test part the ranges of a table were learned of: accuracy on them is flattered.

    Raises:
        ImageError: a picture cannot be read.
    """
    known = {picture.sha256 for picture in table.pictures}
    try:
        return sum(file_sha256(crop.path) in known for crop in (*split.query, *split.gallery))
    except OSError as error:
        raise ImageError(f"A picture of {split.root} cannot be read", got=error) from error


def _shared(reference: Neighbors, engine: Neighbors) -> float:
    """Mean share of the reference's nearest crops that the engine has among its nearest."""
    truth, got = reference.indices, engine.indices
    real = truth != NO_NEIGHBOR
    found = (truth[:, :, None] == got[:, None, :]).any(axis=2) & real
    asked = real.any(axis=1)
    return float((found.sum(axis=1)[asked] / real.sum(axis=1)[asked]).mean())


def _unit_differences(
    got: Float32[np.ndarray, "n dim"], truth: Float32[np.ndarray, "n dim"]
) -> tuple[float, float, Float64[np.ndarray, " n"]]:
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (got.astype(np.float64), truth.astype(np.float64)))
    apart = np.abs(a - b)
    beyond = np.maximum(apart - _ABSOLUTE, 0)
    relative = np.divide(beyond, np.abs(b), out=np.where(beyond > 0, np.inf, 0.0), where=b != 0)
    return float(apart.max()), float(relative.max()), (a * b).sum(axis=1)


def _in_batches(
    embedder: Embedder, golden: Golden, batch: int
) -> tuple[Float32[np.ndarray, "n dim"], Float32[np.ndarray, "n dim"]]:
    """Embeddings of full batches in which crops come in another order, each as often as any; and the golden ones."""
    count = len(golden.crops)
    rows = np.random.default_rng(batch).permutation(np.arange(math.lcm(count, batch)) % count)
    got = [embedder.embed(golden.crops[part]) for part in rows.reshape(-1, batch)]
    return np.concatenate(got), golden.embeddings[rows]


def _differences(
    got: Float32[np.ndarray, "n dim"], golden: Float32[np.ndarray, "n dim"]
) -> tuple[float, Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Largest difference of a value; of each crop, relative length of the difference, and cosine."""
    a, b = got.astype(np.float64), golden.astype(np.float64)
    lengths = np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.linalg.norm(a - b, axis=1) / lengths
        cosine = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * lengths)
        return float(np.abs(a - b).max()), relative, cosine
