"""The model card: what a bundle says of itself, for people, as Markdown and as a page. Nothing is added to it."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reidkit.architecture import in_words
from reidkit.atomic import check_free, output_file
from reidkit.bundle import MODEL, SUFFIX, Bundle
from reidkit.calibration import parse_calibration
from reidkit.config import to_dict
from reidkit.errors import OutputError
from reidkit.manifest import Accuracy, Latency, LicenceClass, Manifest
from reidkit.report.document import (
    Block,
    Code,
    Document,
    Facts,
    Points,
    Section,
    Table,
    Words,
    as_markdown,
    as_page,
)
from reidkit.report.results import UNKNOWN, printable

NOT_MEASURED = "not measured"


def card_files(out: Path | str | None, bundle: Bundle) -> tuple[Path, Path]:
    """The Markdown file and the page of a card.

    Args:
        out: a folder that is there, for NAME-card.md and NAME-card.html in it; or the files' name, with either suffix
            or none; None takes the current folder.
        bundle: NAME.reid.

    Raises:
        OutputError: they would be inside a bundle, whose files are those that its manifest lists.
    """
    name = f"{bundle.path.resolve().stem}-card"
    base = Path(name) if out is None else Path(out)
    if base.is_dir():
        base /= name
    elif base.suffix.lower() in (".md", ".html", ".htm"):
        base = base.with_suffix("")
    inside = next((folder for folder in base.resolve().parents if folder.suffix == SUFFIX), None)
    if inside is not None or base.suffix == SUFFIX:
        raise OutputError(
            f"The card cannot be written to {base}",
            got=f"a place inside the bundle {inside}" if inside else "the name of a bundle",
            expected="a place beside it: a bundle holds nothing but the files that its manifest lists",
            fix=f"say --out {name}",
        )
    return base.with_name(f"{base.name}.md"), base.with_name(f"{base.name}.html")


def write_card(bundle: Bundle, out: Path | str | None = None, *, overwrite: bool = False) -> tuple[Path, Path]:
    """Writes the model card of a bundle, as Markdown and as one HTML file that needs nothing else; both or neither.

    The same bundle gives the same bytes. Names are escaped in both.

    Args:
        bundle: what the card is about; it is not changed.
        out: as `card_files` takes it.
        overwrite: replace files that are already there.

    Raises:
        OutputError: a file is already there, would be inside a bundle, or cannot be written.
    """
    files = card_files(out, bundle)
    for file in files:
        check_free(file, overwrite=overwrite)
    card = model_card(bundle)
    texts = f"{_hub_header(bundle.manifest)}\n{as_markdown(card)}", as_page(card)
    with output_file(files[0]) as first, output_file(files[1]) as second:
        for temporary, text in zip((first, second), texts, strict=True):
            temporary.write_text(text, encoding="utf-8", newline="\n")
    return files


def model_card(bundle: Bundle) -> Document:
    """Everything that the manifest of a bundle says, in the order in which people ask; what it does not say, too."""
    manifest = bundle.manifest
    spec, cost = manifest.input, manifest.cost
    name = shlex.quote(bundle.path.name)
    return Document(
        kind="Model card",
        title=manifest.name or bundle.path.name,
        lede=f"{manifest.task.capitalize()} re-identification: maps a crop to a {manifest.embedding.dim}-d embedding. "
        "The nearer two embeddings are, the more alike their crops are to the network.",
        headline=[
            ("input", f"{spec.height} x {spec.width}"),
            ("embedding", f"{manifest.embedding.dim}-d"),
            ("parameters", UNKNOWN if cost is None else _short(cost.parameters / 1e6, " M")),
            ("GFLOPs", UNKNOWN if cost is None or cost.multiply_adds is None else _short(cost.multiply_adds / 1e9)),
        ],
        sections=[
            Section("Model", _model(manifest)),
            Section("Accuracy", _accuracy(manifest.accuracy, name)),
            *([] if bundle.calibration is None else [Section("Eight bits", _eight_bits(bundle.calibration, name))]),
            Section("Speed", _speed(manifest.latency, name)),
            Section("Input", _input(manifest)),
            Section("Origin and training", _origin(manifest)),
            Section("Licence", [Words(_licence(manifest.licence))]),
            Section("Limits of use", [Points(_limits(manifest))]),
            Section("Files", _files(bundle)),
        ],
        footer="Written by reid card from what lies in the bundle, and from nothing else.",
    )


def _hub_header(manifest: Manifest) -> str:
    """The front matter that model hubs read. A class of licence is no licence, so none is named."""
    tags = (
        f"{manifest.task}-re-identification",
        "re-identification",
        "onnx" if MODEL in manifest.files else "openvino",
    )
    return "\n".join(["---", "library_name: reidkit", "tags:", *(f"- {tag}" for tag in tags), "---", ""])


def _model(manifest: Manifest) -> list[Block]:
    spec, cost, embedding = manifest.architecture, manifest.cost, manifest.embedding
    multiply_adds = None if cost is None else cost.multiply_adds
    size = f"{manifest.input.height} x {manifest.input.width}"
    rows = [
        ("task", f"tells one {manifest.task} from another"),
        ("architecture", f"{UNKNOWN}: a foreign graph" if spec is None else in_words(spec)),
        ("parameters", UNKNOWN if cost is None else f"{cost.parameters:,}"),
        (
            "GFLOPs",
            UNKNOWN
            if multiply_adds is None
            else f"{_short(multiply_adds / 1e9)} for one crop of {size} (a multiply-add counted once)",
        ),
        (
            "embedding",
            f"{embedding.dim}-d float32, " + ("of unit length" if embedding.normalized else "not normalised"),
        ),
        ("precision", f"{manifest.precision} inside the graph"),
        ("batch", "any" if manifest.batch is None else f"always {manifest.batch}"),
    ]
    return (
        [Facts(rows)] if spec is None else [Facts(rows), Code(_lines(to_dict(spec)), "The architecture, as its spec")]
    )


def _input(manifest: Manifest) -> list[Block]:
    spec = manifest.input
    swapped = ", which the graph makes of it" if spec.color != "rgb" else ""
    rows = [
        ("crop", f"{spec.height} x {spec.width} pixels (height x width), RGB, 8 bits a channel"),
        ("resize", f"{spec.resize}, straight to that size, as Pillow does it"),
        ("colour order", f"the network sees {spec.color.upper()}{swapped}"),
        ("normalisation", f"(pixel / {spec.scale:g} - mean) / std, inside the graph"),
        ("mean", ", ".join(f"{value:g}" for value in spec.mean)),
        ("std", ", ".join(f"{value:g}" for value in spec.std)),
    ]
    return [Facts(rows)]


def _origin(manifest: Manifest) -> list[Block]:
    origin = manifest.provenance
    values = {
        "trained on": origin.dataset,
        **({} if origin.init is None else {"started from": origin.init}),
        **({} if origin.teacher is None else {"copied from": origin.teacher}),
        "made from": origin.source,
        "sha256 of that": origin.source_sha256,
        **({} if origin.dialect is None else {"written as": origin.dialect}),
        "reference embeddings by": origin.framework,
        "created": origin.created,
        "by reidkit": origin.reidkit,
    }
    blocks: list[Block] = [Facts([(name, value or UNKNOWN) for name, value in values.items()])]
    if origin.assumptions:
        blocks += [Words("The source does not say everything. This was assumed:"), Points(origin.assumptions)]
    if origin.recipe:
        return [*blocks, Code(_lines(origin.recipe), "The training recipe")]
    return [*blocks, Words(f"The training recipe is {UNKNOWN}.")]


def _accuracy(measured: Sequence[Accuracy], name: str) -> list[Block]:
    command = f"reid evaluate {name} --data DATA"
    if not measured:
        return [
            Words(f"With and without flipping: {NOT_MEASURED}. How to measure:"),
            _how(command, f"{command} --tta flip"),
        ]
    rows = [
        (
            *(a.dataset, a.protocol, _distance(a), f"{a.runtime} on {a.device}", a.precision, a.tta),
            *(f"{100 * value:.2f}" for value in (a.rank1, a.mAP, a.mINP)),
            *(f"{a.queries:,}", f"{a.gallery:,}"),
        )
        for a in sorted(measured, key=_plain_first)
    ]
    columns = ("data set", "protocol", "metric", "engine", "precision", "TTA")
    numbers = ("rank-1 %", "mAP %", "mINP %", "queries", "gallery")
    blocks: list[Block] = [
        Table("", (*columns, *numbers), rows, len(numbers)),
        Words(
            "rank-1: queries whose nearest crop is right; mAP: mean average precision; mINP: mean inverse negative "
            "penalty. TTA is test-time augmentation: flip averages the embeddings of a crop and of its mirror image, "
            "multiscale those of a crop seen from nearer or farther."
        ),
    ]
    made = {a.tta for a in measured if a.refinement == "none"}
    if "flip" not in made:
        blocks += [Words(f"With flipping: {NOT_MEASURED}. How to measure:"), _how(f"{command} --tta flip")]
    if "none" not in made:
        blocks += [Words(f"Without flipping: {NOT_MEASURED}. How to measure:"), _how(command)]
    return blocks


def _distance(a: Accuracy) -> str:
    return a.metric if a.refinement == "none" else f"{a.metric}, {a.refinement}"


def _plain_first(a: Accuracy) -> tuple[str | bool, ...]:
    plain = (a.refinement != "none", a.refinement, a.tta != "none", a.tta)
    return (a.dataset, a.protocol, a.metric, a.runtime, a.precision, a.device, *plain)


def _eight_bits(file: Path, name: str) -> list[Block]:
    table = parse_calibration(file.read_bytes(), source=str(file))
    share = "" if table.percentile is None else f" {table.percentile:g}"
    learned = "learned in training" if table.method == "qat" else f"{table.method}{share}"
    rows = [
        ("ranges", f"{learned}, of {len(table.ranges):,} values"),
        (
            "seen on",
            f"{len(table.pictures):,} pictures of {table.dataset}: {table.source}, chosen by seed {table.seed}",
        ),
        ("layers", f"{len(table.scales) - len(table.floats):,} of {len(table.scales):,} in eight bits"),
        *([("in float", ", ".join(table.floats))] if table.floats else []),
        ("created", table.created or UNKNOWN),
    ]
    blocks: list[Block] = [Facts(rows)]
    if table.source in ("query", "gallery"):
        blocks.append(Words("Those are pictures to test on: accuracy that was measured on them is flattered."))
    if table.source == "folder":
        blocks.append(Words("Whether those pictures are tested on, too, is not known."))
    return [*blocks, Words("What it costs in accuracy:"), Code(f"reid verify {name} --precision int8 --data DATA")]


def _speed(measured: Sequence[Latency], name: str) -> list[Block]:
    if not measured:
        return [Words(f"Latency: {NOT_MEASURED}. How to measure:"), _how(f"reid bench {name}")]
    tables: list[Block] = []
    for machine in sorted({row.machine for row in measured}):
        here = sorted((row for row in measured if row.machine == machine), key=_engine_first)
        tables.append(_latencies(f"On {machine}", here))
    words = [
        "Time of one batch from crops to embeddings; with decoding, from JPEG files. p90: nine of ten are as fast."
    ]
    if any(row.gpu_ms is not None for row in measured):
        words.append("GPU ms: the card's own median, crops and embeddings staying there.")
    return [*tables, Words(" ".join(words))]


def _latencies(title: str, rows: Sequence[Latency]) -> Table:
    """Rows of one machine; what none of them knows has no column."""
    words = {
        "engine": [f"{_engine(row)} on {row.device}" for row in rows],
        "precision": [row.precision for row in rows],
        "decoding": ["with" if row.decode else "without" for row in rows],
    }
    numbers = {
        "batch": [str(row.batch) for row in rows],
        "median ms": [f"{row.median_ms:.2f}" for row in rows],
        "p90 ms": [f"{row.p90_ms:.2f}" for row in rows],
        "GPU ms": ["" if row.gpu_ms is None else f"{row.gpu_ms:.3f}" for row in rows],
        "images/s": [f"{row.images_per_second:,.1f}" for row in rows],
        "runs": [f"{row.runs:,}" for row in rows],
        "engine MB": ["" if row.engine_bytes is None else f"{row.engine_bytes / 1e6:.1f}" for row in rows],
    }
    numbers = {name: cells for name, cells in numbers.items() if any(cells)}
    cells = list(zip(*words.values(), *numbers.values(), strict=True))
    return Table(title, (*words, *numbers), cells, len(numbers))


def _engine(row: Latency) -> str:
    return row.runtime if row.via is None else f"{row.runtime} by {row.via}"


def _engine_first(row: Latency) -> tuple[str | bool | int, ...]:
    return (row.runtime, row.via or "", row.precision, row.device, row.decode, row.batch)


def _how(*commands: str) -> Code:
    return Code("\n".join(f"{command} --record" for command in commands))


_LICENCES: dict[LicenceClass, str] = {
    "permissive": "permissive",
    "copyleft": "copyleft",
    "research-only": "for research only",
    "proprietary": "proprietary",
}

_LICENCE_LIMITS: dict[LicenceClass, str] = {
    "copyleft": "Who passes the weights on, changed or not, does so under the terms of their licence: read it first.",
    "research-only": "The weights are licensed for research only: any other use needs another licence.",
    "proprietary": "The weights belong to somebody: use them as their licence allows.",
    "unknown": "The licence of the weights is not known: find it out before you use, change or pass them on.",
}

_TASK_LIMITS = {
    "person": "It tells people apart in pictures. Such pictures and their embeddings are personal data in many places, "
    "and may count as biometric data; finding people again may need a legal basis, or be forbidden. Know the law that "
    "applies to you before you use it.",
    "vehicle": "It tells vehicles apart in pictures. Where a vehicle leads to a person, such pictures and their "
    "embeddings may be personal data. Know the law that applies to you before you use it.",
}


def _licence(kind: LicenceClass) -> str:
    if kind not in _LICENCES:
        return f"Of the weights: {UNKNOWN}."
    return f"Of the weights: {_LICENCES[kind]}. That is a class; the conditions are in the licence's own text."


def _limits(manifest: Manifest) -> list[str]:
    """Only what follows from the manifest, or from what a ranking is."""
    origin = manifest.provenance
    lines = [
        "A search gives the nearest crops, whether the one that is sought is among them or not: that two embeddings "
        f"are near is no proof that their crops show the same {manifest.task}.",
        _TASK_LIMITS[manifest.task],
    ]
    if origin.dataset is None:
        lines.append("What it was trained on is not known, and so neither what it has seen nor with whose consent.")
    measured = sorted({a.dataset for a in manifest.accuracy})
    if measured:
        lines.append(
            f"What is known of its accuracy was measured on {', '.join(measured)}. Other cameras and places give other "
            "figures: measure on pictures of yours before you rely on it."
        )
    else:
        lines.append("Its accuracy was not measured: measure on pictures of your cameras before you rely on it.")
    if origin.assumptions:
        lines.append(
            "It was imported under assumptions, which are listed above. Where one is wrong, so are the embeddings."
        )
    if manifest.architecture is None:
        lines.append("It is a foreign graph: its architecture is not known, and it cannot be built again from weights.")
    if manifest.licence in _LICENCE_LIMITS:
        lines.append(_LICENCE_LIMITS[manifest.licence])
    return lines


def _files(bundle: Bundle) -> list[Block]:
    rows = [
        (name, digest, f"{(bundle.path / name).stat().st_size:,}")
        for name, digest in sorted(bundle.manifest.files.items())
    ]
    return [Table("", ("file", "sha256", "bytes"), rows, 1)]


def _short(value: float, unit: str = "") -> str:
    """A number to three digits: `0.0823`, `2.67`, `1,234`."""
    return (f"{value:.3g}" if value < 999.5 else f"{value:,.0f}") + unit


def _lines(values: Mapping[str, Any]) -> str:
    return "\n".join(_flat(values))


def _flat(values: Mapping[str, Any], above: str = "") -> Iterable[str]:
    """Nested values as lines `a.b = 1`."""
    for name, value in values.items():
        key = printable(name)  # a line break would begin another line
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key} = {json.dumps(value, ensure_ascii=False)}"
