"""`reid verify`: does every engine give what the source framework gave?"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from reidkit.bundle import Bundle, open_bundle
from reidkit.calibration import parse_calibration
from reidkit.cli import console, options
from reidkit.cli.measuring import Settings, check_engines, check_ranking
from reidkit.cli.opening import open_way
from reidkit.data import load_split
from reidkit.deploy.verify import (
    MAX_MAP_DROP,
    Agreement,
    Measured,
    Parity,
    Refusal,
    check_accuracy,
    measure_on,
    seen_in_calibration,
)
from reidkit.deploy.verify import verify as hold
from reidkit.deploy.ways import INT8_ENGINES, Way
from reidkit.errors import RuntimeMissing
from reidkit.evaluate.embedding_cache import default_folder, open_cache
from reidkit.metrics.bootstrap import PairedDifference
from reidkit.runtime import ENGINES, RUNTIMES, RuntimeName, installed
from reidkit.types import Precision, Split


def verify(
    bundle: options.BundlePath,
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", help="Engines to check (default: all installed).")
    ] = None,
    device: options.Device = None,
    precision: options.PrecisionsOption = None,
    rebuild: options.Rebuild = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="A data set, to compare what is found in it, too.")
    ] = None,
    max_map_drop: Annotated[
        float | None,
        typer.Option(
            "--max-map-drop",
            min=0,
            help=f"Of --data: points of mAP (percent) that an engine may lose (default: {100 * MAX_MAP_DROP:g}).",
        ),
    ] = None,
    batch: options.BatchSize = 32,
    workers: options.Workers = None,
    cached: options.Cached = True,
    data_format: options.DataFormat = None,
    variant: options.DataVariant = None,
) -> list[Parity]:
    """Hold engines to the golden embeddings; exit with 1 where one is beyond its tolerance.

    With --data, each engine that passes, and each in int8, also embeds and ranks a data set, beside ONNX Runtime (of
    OpenVINO's IR, OpenVINO) on the processor, which runs the bundle's graph as it is.
    """
    precisions = options.parse_precisions(precision)
    opened = open_bundle(bundle)
    if data is None:
        given = {"--format": data_format, "--variant": variant, "--max-map-drop": max_map_drop is not None}
        options.refuse_idle(given, "without --data")
        split = None
    else:
        split = load_split(data, data_format, variant=variant)
        check_ranking(split, Settings())
        check_engines([(opened, _reference(opened).runtime)])
    rows, passed = hold_engines(opened, runtime or (), device=device, precisions=precisions, rebuild=rebuild)
    if split is not None:
        settings = Settings(device=device, batch=batch, workers=workers, cached=cached)
        measured = [row for row in rows if row.passed or _is_rounded(row, opened)]
        most = MAX_MAP_DROP if max_map_drop is None else max_map_drop / 100
        agreements = _compare(opened, split, measured, settings, most) if measured else []
        _print_agreements(agreements, split, _reference(opened))
        for row, (way, agreement) in zip(measured, agreements, strict=True):
            if agreement.passed and not row.passed:
                console.warn(f"{way.in_words()} passes on {split.name}, and not on golden crops")
        if opened.calibration is not None and any(way.precision == "int8" for way, _ in agreements):
            _warn_of_seen(opened.calibration, split)
        passed = passed and all(agreement.passed for _, agreement in agreements)
    if not passed:
        raise typer.Exit(1)
    return rows


def _is_rounded(row: Parity, bundle: Bundle) -> bool:
    """Whether it may be drawn crops that are far off, so that what rounding costs has to be seen on real ones."""
    quantised = row.precision == "int8" and bundle.manifest.precision != "int8"
    return quantised and math.isfinite(row.mean_rel) and math.isfinite(row.mean_cosine)


def _reference(bundle: Bundle) -> Way:
    """What is held to be right: the bundle's graph as it is, on a processor."""
    return Way("openvino" if bundle.graph_format == "openvino" else "onnxruntime", bundle.manifest.precision)


def _warn_of_seen(file: Path, split: Split) -> None:
    seen = seen_in_calibration(parse_calibration(file.read_bytes(), source=str(file)), split)
    if seen:
        console.warn(
            f"the int8 graph was calibrated on {seen} of these pictures: what is measured on them is flattered"
        )


def int8_engines(bundle: Bundle) -> list[RuntimeName]:
    """The engines of processors that are here and run a quantised bundle."""
    return [name for name in INT8_ENGINES if name in installed(bundle)]


def hold_engines(
    bundle: Bundle,
    runtime: Sequence[str] = (),
    *,
    device: str | None = None,
    precisions: Sequence[Precision | None] = (None,),
    rebuild: bool = False,
) -> tuple[list[Parity], bool]:
    """Checks engines and prints how near each comes.

    Args:
        bundle: the model.
        runtime: engines to check; none named takes all that are installed.
        device: of the engines.
        precisions: of their arithmetic; None is what there is.
        rebuild: build an engine again that does not fit.

    Returns:
        The engines that could be compared, and whether all that were to be checked passed, one at least.
    """
    names = options.each_of(RUNTIMES, runtime, what="runtime") if runtime else installed(bundle)
    with console.spinner("verifying"):
        opener = partial(open_way, rebuild=rebuild)
        rows = hold(bundle, names, device=device, precisions=precisions, opener=opener)
    # An engine that nobody named and that has no such device or precision is no failure; it is said that it was not
    # checked.
    skipped = [
        row for row in rows if not runtime and isinstance(row, Refusal) and isinstance(row.error, RuntimeMissing)
    ]
    rows = [row for row in rows if row not in skipped]
    print_parity(rows)
    if not runtime:
        absent = [name for name in ENGINES if name not in [row.runtime for row in rows]]
        if absent:
            console.say(f"not checked, because not here or not able to open this bundle: {', '.join(absent)}")
        for row in skipped:
            if row.precision is not None and row.runtime not in absent:
                console.say(f"not checked: {row.runtime} in {row.precision}, which it does not run")
    passed = bool(rows) and all(row.passed for row in rows)
    return [row for row in rows if isinstance(row, Parity)], passed


def hold_tensorrt_graph(bundle: Bundle) -> Parity:
    """Checks the graph that TensorRT builds int8 from, without TensorRT, and prints how near it comes."""
    from reidkit.deploy.quantize.quantize import check_tensorrt_graph  # needs onnx

    with console.spinner("verifying the graph for TensorRT on ONNX Runtime"):
        row = check_tensorrt_graph(bundle)
    print_parity([row])
    return row


def _compare(
    bundle: Bundle, split: Split, rows: Sequence[Parity], settings: Settings, max_drop: float
) -> list[tuple[Way, Agreement]]:
    """What each engine makes of a data set, beside the reference; its embeddings are forgotten before the next."""

    def measured(way: Way, device: str | None) -> Measured:
        embedder = way.open(bundle, device=device)
        cache = open_cache(default_folder(), bundle, embedder.spec, "none") if settings.cached else None
        with console.progress_bar(f"embedding with {way.in_words()}") as progress:
            return measure_on(
                embedder,
                split,
                model=bundle.manifest.name,
                batch_size=settings.batch,
                workers=settings.workers,
                cache=cache,
                progress=progress,
            )

    reference = measured(_reference(bundle), "cpu")
    found: list[tuple[Way, Agreement]] = []
    for row in rows:
        way = Way(_runtime_of(row), row.precision, row.via)
        found.append((way, check_accuracy(reference, measured(way, row.device), max_drop=max_drop)))
    return found


def _runtime_of(row: Parity) -> RuntimeName:
    # Of several engines that share the batches it is all of their names; together they are what was chosen.
    known: dict[str, RuntimeName] = {name: name for name in ENGINES}
    return known.get(row.runtime, "auto")


def _print_agreements(agreements: Sequence[tuple[Way, Agreement]], split: Split, reference: Way) -> None:
    if not agreements:
        console.say(f"no engine passes: nothing was measured on {split.name}")
        return
    columns = ("engine", "min cosine", "mean", "change of mAP", "of rank-1", "top 10", "")
    table = console.table(f"{split.name}, beside {reference.in_words()}", *columns, numbers=6)
    for way, agreement in agreements:
        table.add_row(
            way.in_words(),
            f"{agreement.min_cosine:.6f}",
            f"{agreement.mean_cosine:.6f}",
            _in_points(agreement.change),
            _in_points(agreement.rank1),
            f"{100 * agreement.top:.2f}",
            "[green]passed[/]" if agreement.passed else "[bold red]FAILED[/]",
        )
    console.out.print(table)
    agreement = agreements[0][1]
    console.say(
        f"Cosines over {agreement.crops:,} crops; changes in percentage points, with 95 % intervals. mAP of "
        f"the reference: {100 * agreement.mean_ap[0]:.2f}; {100 * agreement.max_drop:g} points may be lost. "
        "Top 10: the same crops found, in percent."
    )


def _in_points(change: PairedDifference) -> str:
    """A change and its 95 % interval, in percentage points."""
    low, high = change.interval
    return f"{100 * change.difference:+.3f} ({100 * low:+.2f} to {100 * high:+.2f})"


def print_parity(rows: Sequence[Parity | Refusal]) -> None:
    """How near each engine comes to the golden embeddings, and what kept others from it, as a table."""
    compared = [row for row in rows if isinstance(row, Parity)]
    means = any(row.tolerance.mean for row in compared)
    columns = ["max abs", "max rel", "min cosine", *(["mean cosine"] if means else [])]
    table = console.table(None, "runtime", "device", "precision", *columns, "", numbers=len(columns) + 1)
    for row in rows:
        if isinstance(row, Refusal):
            table.add_row(_name(row), row.device, row.precision or "", *[""] * len(columns), "[bold red]FAILED[/]")
            continue
        numbers = [f"{row.max_abs:.1e}", f"{row.max_rel:.1e}", f"{row.min_cosine:.6f}"]
        numbers += [f"{row.mean_cosine:.6f}"] if means else []
        verdict = "[green]passed[/]" if row.passed else "[bold red]FAILED[/]"
        table.add_row(_name(row), row.device, row.precision, *numbers, verdict)
    console.out.print(table)
    for precision, limit in {row.precision: row.tolerance for row in compared}.items():
        console.say(f"{precision}: {limit.in_words}")
    for row in compared:
        if not row.passed:
            console.warn(f"{_name(row)} {row.precision} is beyond that: {row.in_words}")
    for row in rows:
        if isinstance(row, Refusal):
            console.show_error(row.error)


def _name(row: Parity | Refusal) -> str:
    return row.runtime if row.via is None else f"{row.runtime} by {row.via}"
