"""What a data set holds and what is wrong with it, before hours of training are spent on it."""

import hashlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from reidkit.data.naming import count
from reidkit.errors import ImageError
from reidkit.imaging import available_cores, open_image
from reidkit.types import DISTRACTOR, SUBSETS, UNKNOWN_CAMERA, Crop, Progress, Split, Subset, no_progress

Severity = Literal["error", "warning", "info"]
_RANK: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}

_BLOCK = 1024  # pictures handed to the threads at a time: bounds memory and the wait after an interruption


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that somebody should know about a data set.

    Attributes:
        kind: a short name that stays the same between versions.
        severity: `error` makes training or evaluation fail or lie, `warning` may, `info` explains the numbers.
        sentence: for people.
        paths: all the pictures it is about; one for each identity where it is about identities.
        details: what there is to say about each of them, in the same order; or empty.
    """

    kind: str
    severity: Severity
    sentence: str
    paths: tuple[Path, ...] = ()
    details: tuple[str, ...] = ()

    def examples(self, limit: int = 5) -> tuple[str, ...]:
        """The first pictures, each with its detail in brackets."""
        details = self.details or ("",) * len(self.paths)
        pairs = list(zip(self.paths, details, strict=True))[:limit]
        return tuple(f"{path} ({detail})" if detail else str(path) for path, detail in pairs)


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, middle and largest of some counts."""

    min: int
    median: float
    max: int


@dataclass(frozen=True, slots=True)
class SubsetFacts:
    """How much there is in one subset.

    Attributes:
        crops: pictures, distractors included.
        identities: without distractors.
        cameras: that are known.
        crops_per_identity: without distractors; None where there is no identity.
    """

    crops: int
    identities: int
    cameras: int
    crops_per_identity: Spread | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect_split` saw; plain data for `reidkit.config.to_dict`.

    Attributes:
        format: the parser that read the data set.
        root: the folder or file it was read from.
        train: what there is to learn from.
        query: what there is to ask with.
        gallery: what there is to be found.
        junk: crops that are ranked nowhere.
        distractors: gallery crops of nobody in particular.
        valid_queries: queries with a match in the gallery under the Market-1501 protocol; only they are scored.
        findings: errors first.
    """

    format: str
    root: Path
    train: SubsetFacts
    query: SubsetFacts
    gallery: SubsetFacts
    junk: int
    distractors: int
    valid_queries: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make training or evaluation fail or lie."""
        return tuple(finding for finding in self.findings if finding.severity == "error")


class _Picture(NamedTuple):
    digest: bytes
    height: int
    width: int
    problem: str | None


def inspect_split(
    split: Split, *, threads: int | None = None, tiny: tuple[int, int] = (32, 16), progress: Progress = no_progress
) -> Inspection:
    """Reads and decodes every picture of a split, junk included, and tells what it holds and what is wrong.

    A query is valid when another file of the gallery shows its identity by another camera, or by any where either
    camera is unknown.
    Pictures are the same when their files have the same sha256.

    Args:
        split: as `load_split` gives it.
        threads: to decode with; None takes one per processor core this process may use.
        tiny: height and width in pixels; a crop smaller in either is found tiny.
        progress: called with pictures read and their number.
    """
    paths = {crop.path for crops in (*_subsets(split).values(), split.junk) for crop in crops}
    pictures = _read(sorted(paths, key=Path.as_posix), threads or available_cores(), progress)
    unmatched = _unmatched_queries(split)
    findings = [*_structure_findings(split, unmatched), *_picture_findings(split, pictures, tiny)]
    return Inspection(
        format=split.format,
        root=split.root,
        train=_facts(split.train),
        query=_facts(split.query),
        gallery=_facts(split.gallery),
        junk=len(split.junk),
        distractors=sum(crop.pid == DISTRACTOR for crop in split.gallery),
        valid_queries=len(split.query) - len(unmatched),
        findings=tuple(sorted(findings, key=lambda finding: _RANK[finding.severity])),
    )


def _subsets(split: Split) -> dict[Subset, tuple[Crop, ...]]:
    return {subset: split.subset(subset) for subset in SUBSETS}


def _facts(crops: Sequence[Crop]) -> SubsetFacts:
    sizes = list(Counter(crop.pid for crop in crops if crop.pid != DISTRACTOR).values())
    return SubsetFacts(
        crops=len(crops),
        identities=len(sizes),
        cameras=len({crop.camid for crop in crops} - {UNKNOWN_CAMERA}),
        crops_per_identity=Spread(min(sizes), float(statistics.median(sizes)), max(sizes)) if sizes else None,
    )


def _read(paths: Sequence[Path], threads: int, progress: Progress) -> dict[Path, _Picture]:
    pictures: dict[Path, _Picture] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="reidkit-inspect") as pool:
        for start in range(0, len(paths), _BLOCK):
            block = paths[start : start + _BLOCK]
            for path, picture in zip(block, pool.map(_examine, block), strict=True):
                pictures[path] = picture
                progress(len(pictures), len(paths))
    return pictures


def _examine(path: Path) -> _Picture:
    try:
        data = path.read_bytes()
    except OSError as error:
        return _Picture(b"", 0, 0, error.strerror or str(error))
    digest = hashlib.sha256(data).digest()
    try:
        image = open_image(data)
    except ImageError as error:
        return _Picture(digest, 0, 0, str(error.got or "not a picture"))
    return _Picture(digest, image.height, image.width, None)


def _unmatched_queries(split: Split) -> list[Crop]:
    gallery = _by_identity(split.gallery)
    return [query for query in split.query if all(_is_left_out(query, crop) for crop in gallery.get(query.pid, ()))]


def _is_left_out(query: Crop, crop: Crop) -> bool:
    """Whether evaluation does not rank a gallery crop for a query: `reidkit.metrics.junk`, for single crops."""
    return query.path == crop.path or (query.pid == crop.pid and query.camid == crop.camid != UNKNOWN_CAMERA)


def _structure_findings(split: Split, unmatched: Sequence[Crop]) -> Iterator[Finding]:
    for subset, crops in _subsets(split).items():
        if not crops:
            yield Finding("empty-subset", "warning", f"There are no {subset} crops.")
    if unmatched:
        # Without a camera there is nothing to cross: any gallery crop of the identity would do.
        across = " by another camera" if any(query.camid != UNKNOWN_CAMERA for query in unmatched) else ""
        lost = len(unmatched) == len(split.query)
        end = "nothing can be scored." if lost else "not scored."
        share = f"{count(len(unmatched), 'query', 'queries')} of {len(split.query):,}"
        yield Finding(
            "unmatched-query",
            "error" if lost else "warning",
            f"{share} without a match{across} in the gallery: {end}",
            tuple(query.path for query in unmatched),
        )
    # A file in several subsets is one picture.
    blind = {crop.path for crops in _subsets(split).values() for crop in crops if crop.camid == UNKNOWN_CAMERA}
    if blind:
        text = f"{count(len(blind), 'crop')} of unknown camera: no gallery crop is junk for its camera there."
        yield Finding("unknown-camera", "info", text, tuple(sorted(blind, key=Path.as_posix)))
    one_pool = _is_one_pool(split)
    if not one_pool and split.query and _files(split.query) == _files(split.gallery):
        text = (
            f"Query and gallery are the same {count(len(split.query), 'picture')}: none is ranked for itself; under a "
            "protocol that draws its gallery (VehicleID's), those that are not drawn ask."
        )
        yield Finding("query-is-gallery", "info", text)
    if one_pool:
        text = (
            f"Training and test set are the same {count(len(split.train), 'picture')}: accuracy will look better than"
        )
        yield Finding("one-pool", "warning", f"{text} it is.")
    yield from _identity_findings(split, one_pool)


def _is_one_pool(split: Split) -> bool:
    learned = _files(split.train)
    return bool(learned) and learned == _files((*split.query, *split.gallery))


def _files(crops: Iterable[Crop]) -> set[Path]:
    return {crop.path for crop in crops}


def _identity_findings(split: Split, one_pool: bool) -> Iterator[Finding]:
    train, query, gallery = (_by_identity(crops) for crops in _subsets(split).values())
    training_cameras = {pid: {crop.camid for crop in crops} for pid, crops in train.items()}
    groups: tuple[tuple[str, Severity, str, Iterable[Crop]], ...] = (
        (
            "train-test-identity",
            "warning",
            "in both the training and the test set: accuracy will look better than it is.",
            (crops[0] for pid, crops in train.items() if not one_pool and (pid in query or pid in gallery)),
        ),
        (
            "single-crop-identity",
            "warning",
            "of the training set with a single crop: nothing to pull together.",
            (crops[0] for crops in train.values() if len(crops) == 1),
        ),
        (
            "single-camera-identity",
            "info",
            "of the training set seen by one camera only: they teach nothing across cameras.",
            (train[pid][0] for pid, seen in training_cameras.items() if len(seen) == 1 and UNKNOWN_CAMERA not in seen),
        ),
        (
            "unasked-identity",
            "info",
            "of the gallery that no query asks for: they only count as wrong.",
            (crops[0] for pid, crops in gallery.items() if query and pid not in query),
        ),
    )
    for kind, severity, text, crops in groups:
        found = list(crops)
        if found:
            sentence = f"{count(len(found), 'identity', 'identities')} {text}"
            details = tuple(f"identity {_name(split, crop)}" for crop in found)
            yield Finding(kind, severity, sentence, tuple(crop.path for crop in found), details)


def _by_identity(crops: Iterable[Crop]) -> dict[int, list[Crop]]:
    groups: dict[int, list[Crop]] = defaultdict(list)
    for crop in crops:
        if crop.pid != DISTRACTOR:
            groups[crop.pid].append(crop)
    return dict(sorted(groups.items()))


def _name(split: Split, crop: Crop) -> str:
    return "distractor" if crop.pid == DISTRACTOR else split.pid_names.get(crop.pid, str(crop.pid))


def _picture_findings(split: Split, pictures: dict[Path, _Picture], tiny: tuple[int, int]) -> Iterator[Finding]:
    broken = {path: picture.problem for path, picture in pictures.items() if picture.problem is not None}
    if broken:
        sentence = f"{count(len(broken), 'picture')} of {len(pictures):,} cannot be decoded."
        yield Finding("unreadable", "error", sentence, tuple(broken), tuple(broken.values()))
    height, width = tiny
    small = {
        path: f"{picture.height} x {picture.width}"
        for path, picture in pictures.items()
        if picture.problem is None and (picture.height < height or picture.width < width)
    }
    if small:
        sentence = f"{count(len(small), 'crop')} less than {height} pixels high or {width} wide."
        yield Finding("tiny", "warning", sentence, tuple(small), tuple(small.values()))
    yield from _copy_findings(split, {path: p.digest for path, p in pictures.items() if p.problem is None})


def _copy_findings(split: Split, digests: dict[Path, bytes]) -> Iterator[Finding]:
    """Findings about files of the same bytes."""
    copies: dict[Subset, dict[bytes, list[Crop]]] = {}
    for subset, crops in _subsets(split).items():
        copies[subset] = defaultdict(list)
        for crop in crops:
            if crop.path in digests:
                copies[subset][digests[crop.path]].append(crop)
    yield from _conflicts(split, copies)

    tested = [crop for crop in (*split.query, *split.gallery) if digests.get(crop.path) in copies["train"]]
    text = "of the test set also in the training set: accuracy will look better than it is."
    if not _is_one_pool(split):
        learned = {crop: _twin(crop, copies["train"][digests[crop.path]]) for crop in tested}
        yield from _copies("train-test-copy", "warning", "picture", text, learned)

    counted: dict[Crop, Crop] = {}
    ignored: dict[Crop, Crop] = {}
    for query in split.query:
        for crop in copies["gallery"].get(digests.get(query.path, b""), ()):
            if crop.path != query.path:  # a file in both is one picture, not a copy
                (ignored if _is_left_out(query, crop) else counted).setdefault(query, crop)
    text = "also in the gallery, and not left out by the protocol: an easy match, or a wrong label."
    yield from _copies("query-gallery-copy", "warning", "query picture", text, counted)
    text = "also in the gallery under the same identity and camera: the protocol leaves them out."
    yield from _copies("ignored-copy", "info", "query picture", text, ignored)


def _twin(crop: Crop, copies: Sequence[Crop]) -> Crop:
    """The copy that is the very file of a crop where there is one, else the first."""
    return next((copy for copy in copies if copy.path == crop.path), copies[0])


def _copies(kind: str, severity: Severity, noun: str, text: str, found: dict[Crop, Crop]) -> Iterator[Finding]:
    pairs = {
        crop.path: "the same file" if crop.path == other.path else f"the same as {other.path}"
        for crop, other in found.items()
    }
    if pairs:
        sentence = f"{count(len(pairs), noun)} {text}"
        yield Finding(kind, severity, sentence, tuple(pairs), tuple(pairs.values()))


def _conflicts(split: Split, copies: dict[Subset, dict[bytes, list[Crop]]]) -> Iterator[Finding]:
    groups: dict[bytes, list[Crop]] = defaultdict(list)
    for by_digest in copies.values():
        for digest, crops in by_digest.items():
            groups[digest] += crops
    torn = [group for group in groups.values() if len({crop.pid for crop in group}) > 1]
    named = {crop.path: f"identity {_name(split, crop)}" for group in torn for crop in group}
    if torn:
        sentence = f"{count(len(torn), 'picture')} under more than one identity: at least one label is wrong."
        yield Finding("label-conflict", "error", sentence, tuple(named), tuple(named.values()))
