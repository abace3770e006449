"""`reid info`: what a bundle is."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from reidkit.architecture import in_words
from reidkit.bundle import Bundle, open_bundle
from reidkit.calibration import parse_calibration
from reidkit.cli import console, options
from reidkit.cli.evaluate import engine_words
from reidkit.config import to_dict
from reidkit.manifest import Manifest
from reidkit.report.results import UNKNOWN, printable


def info(
    bundle: options.BundlePath,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Check a bundle file by file and print what it is."""
    opened = open_bundle(bundle)
    if as_json:
        typer.echo(json.dumps(to_dict(opened.manifest), indent=2))
        return
    _print(opened)


def _print(bundle: Bundle) -> None:
    manifest = bundle.manifest
    spec, embedding, origin = manifest.input, manifest.embedding, manifest.provenance
    table = console.table(None, "bundle", str(bundle.path))
    unknown = UNKNOWN
    rows = {
        "name": manifest.name,
        "task": manifest.task,
        "input": f"{spec.height} x {spec.width} (height x width), {spec.resize}, network sees {spec.color}",
        "inside the graph": f"(pixel / {spec.scale:g} - {list(spec.mean)}) / {list(spec.std)}",
        "embedding": f"{embedding.dim}-d, " + ("unit length" if embedding.normalized else "not normalised"),
        "batch": "any" if manifest.batch is None else f"always {manifest.batch}",
        "architecture": unknown if manifest.architecture is None else in_words(manifest.architecture),
        "cost": _cost(manifest),
        "licence": manifest.licence,
        "made from": origin.source or unknown,
        **({} if origin.dialect is None else {"written as": origin.dialect}),
        **({} if not origin.assumptions else {"assumed": "\n".join(origin.assumptions)}),
        "framework": origin.framework or unknown,
        "trained on": origin.dataset or unknown,
        **({} if origin.init is None else {"started from": origin.init}),
        **({} if origin.teacher is None else {"copied from": origin.teacher}),
        **({} if bundle.calibration is None else {"eight bits": _ranges(bundle.calibration)}),
        "created": f"{origin.created or unknown}, reidkit {origin.reidkit or unknown}",
    }
    for name, value in rows.items():
        table.add_row(name, _cell(value))
    for measured in manifest.accuracy:
        table.add_row(
            _cell(f"measured ({engine_words(measured.runtime, measured.precision)})"),
            _cell(
                f"{measured.dataset}: rank-1 {measured.rank1:.2%}, mAP {measured.mAP:.2%}, "
                f"mINP {measured.mINP:.2%} over {measured.queries} queries"
                + ("" if measured.tta == "none" else f", with {measured.tta} TTA")
                + ("" if measured.refinement == "none" else f", {measured.refinement}")
            ),
        )
    if manifest.latency:
        table.add_row("timed", f"{len(manifest.latency)} rows; `reid card` shows them")
    for name, digest in manifest.files.items():
        size = (bundle.path / name).stat().st_size
        table.add_row(_cell(name), _cell(f"{size:,} bytes, sha256 {digest[:16]}…"))
    console.out.print(table)


def _ranges(file: Path) -> str:
    table = parse_calibration(file.read_bytes(), source=str(file))
    return f"{table.method}, of {len(table.pictures)} pictures of {table.dataset} ({table.source})"


def _cell(text: str) -> Text:
    """What a stranger's manifest says: no markup, no control characters."""
    return Text("\n".join(map(printable, text.split("\n"))))


def _cost(manifest: Manifest) -> str:
    if manifest.cost is None:
        return UNKNOWN
    flops = manifest.cost.multiply_adds
    text = "multiply-adds not known" if flops is None else f"{flops / 1e9:.2f} G multiply-adds a crop"
    return f"{manifest.cost.parameters:,} parameters, {text}"
