"""What `evaluate`, `compare` and `search` do alike: refuse early, embed once, rank as the options say, tell apart."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reidkit.bundle import Bundle
from reidkit.cli import console
from reidkit.cli.opening import Tuning, open_embedder
from reidkit.data import load_split
from reidkit.data.loading import VARIANT_FORMATS
from reidkit.errors import ConfigError, DataError
from reidkit.evaluate import (
    FALSE_POSITIVE_RATES,
    RANKS,
    EmbeddedBy,
    EmbeddedCrops,
    Report,
    embed_split,
    rank_embedded,
)
from reidkit.evaluate.embedding_cache import default_folder, open_cache
from reidkit.index.refinement import Refinement
from reidkit.manifest import Tta
from reidkit.metrics.distance import MEMORY
from reidkit.metrics.junk import labels_of
from reidkit.metrics.prepared import Metric
from reidkit.metrics.protocol import named_protocol
from reidkit.metrics.ranking import Scorer
from reidkit.metrics.roc import RocScorer
from reidkit.runtime import ENGINES, RuntimeName, installed, load, usual_device
from reidkit.runtime.auto import find_choice
from reidkit.types import Precision, Split


@dataclass(frozen=True, slots=True)
class Settings:
    """How to embed and how to rank: the same for every model, engine and data set of a command.

    Attributes:
        tta: test-time augmentation.
        device: in the engine's own words.
        precision: of the engine's arithmetic; None takes what there is.
        rebuild: build an engine again that does not fit.
        tuning: threads and the options of one engine.
        batch: crops a call of the engine.
        workers: that decode.
        skip_unreadable: leave out pictures that cannot be decoded.
        cached: embed the same pictures with the same model once.
        protocol: name, or None for the one of each data set.
        metric: distance between embeddings.
        refinement: of the distances.
        memory: bytes that ranking may take, beside the embeddings.
        ranks: of the CMC.
        rates: false positive rates.
    """

    tta: Tta = "none"
    device: str | None = None
    precision: Precision | None = None
    rebuild: bool = False
    tuning: Tuning = Tuning()
    batch: int = 32
    workers: int | None = None
    skip_unreadable: bool = False
    cached: bool = True
    protocol: str | None = None
    metric: Metric = "cosine"
    refinement: Refinement = Refinement()
    memory: int = MEMORY
    ranks: tuple[int, ...] = RANKS
    rates: tuple[float, ...] = FALSE_POSITIVE_RATES

    def unusual(self) -> dict[str, str]:
        """What a page has to say of how its figures were made, where that is not the usual way."""
        said = {"TTA": self.tta, "metric": self.metric, "refinement": self.refinement.in_words()}
        return {name: value for name, value in said.items() if value not in ("none", "cosine")}


def load_splits(roots: Iterable[Path], data_format: str | None, variant: str | None) -> list[Split]:
    """Parses data sets, each once; the variant is that of those which come in variants.

    Raises:
        ConfigError: no such format or variant, or a variant where no data set has any.
        DataError: one is no data set; see `reidkit.data.load_split`.
    """
    splits = [_load_split(root, data_format, variant) for root in roots]
    if variant is not None and not any(split.format in VARIANT_FORMATS for split in splits):
        raise ConfigError(
            "None of the data sets comes in variants",
            got=f"--variant {variant} for {', '.join(split.name for split in splits)}",
            expected=f"--variant only with {' or '.join(VARIANT_FORMATS)}",
        )
    return list({split.root.resolve(): split for split in splits}.values())


def _load_split(root: Path, data_format: str | None, variant: str | None) -> Split:
    try:
        return load_split(root, data_format, variant=variant)
    except ConfigError:
        if variant is None:
            raise
        split = load_split(root, data_format)
        if split.format in VARIANT_FORMATS:
            raise
        return split


def check_ranking(split: Split, settings: Settings) -> None:
    """Refuses what no ranking of these crops can do: asked first, it costs no embedding.

    Raises:
        ConfigError: no such protocol, more neighbours than crops, too little memory for one query, or a false positive
            rate that is none.
        DataError: the split has no query or no gallery.
        InputError: the pairs that a false positive rate asks to keep do not fit into the memory.
    """
    protocol = named_protocol(settings.protocol, data_format=split.format)
    queries, gallery = len(split.query), len(split.gallery)
    crops = f"{queries} query and {gallery} gallery crops"
    if not queries or not gallery:
        raise DataError(
            f"{split.root} has an empty {'gallery' if queries else 'query'}, so nothing can be ranked",
            got=f"{crops} (format {split.format})",
            expected="both",
            fix="`reid data inspect` shows what was read",
        )
    how = settings.refinement
    for option, neighbors, most in (
        ("--dba", how.database_augmentation, gallery - 1),
        ("--query-expansion", how.query_expansion, gallery),
        ("--k1", 0 if how.rerank is None else how.rerank.k1, queries + gallery - 1),
    ):
        if neighbors > most:
            raise ConfigError(
                f"{option} asks for more neighbours than a crop of {split.name} has",
                got=f"{option} {neighbors}, and {crops}",
                expected=f"{most} at most",
            )
    if settings.memory < 4 * gallery:
        raise ConfigError(
            f"--memory does not hold the distances of one query to the gallery of {split.name}",
            got=f"{settings.memory:,} bytes",
            expected=f"{4 * gallery:,} at least, for {gallery} crops",
        )
    for rate in settings.rates:
        if not 0 <= rate <= 1:
            raise ConfigError(
                "A false positive rate is a share of all wrong pairs", got=f"--fpr {rate:g}", expected="0 to 1"
            )
    if protocol.draw == "nothing":  # where galleries are drawn there is no ROC curve
        query, searched = labels_of(split.query), labels_of(split.gallery)
        RocScorer(query, searched, max_fpr=max(settings.rates, default=0.0), memory=settings.memory)  # which refuses


def check_engines(
    pairs: Iterable[tuple[Bundle, RuntimeName]], *, device: str | None = None, rebuild: bool = False
) -> None:
    """Refuses engines that are not here, or cannot open their model.

    Args:
        pairs: models and engines.
        device: of the engines.
        rebuild: whether one that has to be built may be built when it is opened.

    Raises:
        RuntimeMissing: names what to install, which engines can, or what to build.
    """
    for bundle, runtime in pairs:
        if runtime == "auto":
            if not rebuild:
                find_choice(bundle, device or usual_device(runtime))  # which says what to do
            continue
        # Opening it twice would take too long, or it is built first.
        later = (ENGINES[runtime].on_request and bundle.weights is not None) or (ENGINES[runtime].built and rebuild)
        if runtime not in installed(bundle) and not later:
            load(bundle, runtime)  # which says why


def model_names(bundles: Sequence[Bundle]) -> list[str]:
    """What to call models: by name, or where several have one name, by the end of their paths."""
    ends = _told_apart([(bundle.manifest.name, bundle.path) for bundle in bundles])
    return [bundle.manifest.name if end is None else end for bundle, end in zip(bundles, ends, strict=True)]


def dataset_names(splits: Sequence[Split]) -> list[str]:
    """What to call data sets: format, folder and variant; where that is one for several, more of their paths' ends."""
    ends = _told_apart([(split.name, split.root) for split in splits])
    return [
        split.name if end is None else " ".join([split.format, end, *([split.variant] if split.variant else [])])
        for split, end in zip(splits, ends, strict=True)
    ]


def _told_apart(named: Sequence[tuple[str, Path]]) -> list[str | None]:
    """The shortest end of each path that no other path of the same name has; None where there is no other."""
    homes = [(name, path.resolve()) for name, path in named]
    others = [{path for name, path in homes if name == own and path != home} for own, home in homes]
    return [_shortest_end(home, rest) if rest else None for (_, home), rest in zip(homes, others, strict=True)]


def _shortest_end(home: Path, others: Iterable[Path]) -> str:
    ends = (home.parts[start:] for start in range(len(home.parts) - 1, -1, -1))
    return next(Path(*end).as_posix() for end in ends if all(other.parts[-len(end) :] != end for other in others))


def measure(
    bundle: Bundle,
    split: Split,
    runtime: RuntimeName,
    settings: Settings,
    *,
    model: str,
    dataset: str | None = None,
    scorers: Sequence[Scorer] = (),
) -> Report:
    """The report of one model on one engine; its embeddings are forgotten before the next ones are made.

    Args:
        bundle: the model.
        split: with query and gallery.
        runtime: the engine.
        settings: how.
        model: what to call the model.
        dataset: what to call the split; None takes its own name.
        scorers: as of `reidkit.evaluate.rank_embedded`.
    """
    query, gallery, by = embed(bundle, split, runtime, settings, model=model)
    return rank_embeddings(query, gallery, split, by, settings, dataset=dataset, scorers=scorers)


def embed(
    bundle: Bundle, split: Split, runtime: RuntimeName, settings: Settings, *, model: str
) -> tuple[EmbeddedCrops, EmbeddedCrops, EmbeddedBy]:
    """Query and gallery of a split, embedded by one model on one engine; and what made them. See `measure`."""
    embedder = open_embedder(
        bundle,
        runtime,
        device=settings.device,
        precision=settings.precision,
        rebuild=settings.rebuild,
        tuning=settings.tuning,
    )
    tuned = settings.tuning.hint is not None or settings.tuning.optimization is not None  # no part of a cache's key
    cached = settings.cached and not tuned
    cache = open_cache(default_folder(), bundle, embedder.spec, settings.tta) if cached else None
    with console.progress_bar("embedding") as progress:
        query, gallery = embed_split(
            embedder,
            split,
            tta=settings.tta,
            batch_size=settings.batch,
            workers=settings.workers,
            unreadable="skip" if settings.skip_unreadable else "raise",
            cache=cache,
            progress=progress,
        )
    console.warn_unreadable((*query.unreadable, *gallery.unreadable))
    spec = embedder.spec
    return query, gallery, EmbeddedBy(model, spec.runtime, spec.precision, spec.device, settings.tta)


def rank_embeddings(
    query: EmbeddedCrops,
    gallery: EmbeddedCrops,
    split: Split,
    embedded: EmbeddedBy,
    settings: Settings,
    *,
    dataset: str | None = None,
    scorers: Sequence[Scorer] = (),
) -> Report:
    """The report on embedded crops, as the settings say; see `reidkit.evaluate.rank_embedded`."""
    with console.progress_bar("ranking") as progress:
        return rank_embedded(
            query,
            gallery,
            split=split,
            embedded=embedded,
            dataset=dataset,
            protocol=named_protocol(settings.protocol, data_format=split.format),
            metric=settings.metric,
            refinement=settings.refinement,
            ranks=settings.ranks,
            rates=settings.rates,
            memory=settings.memory,
            scorers=scorers,
            progress=progress,
        )
