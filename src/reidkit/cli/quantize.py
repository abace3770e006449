"""`reid quantize`: a bundle gets graphs in eight bits, from one table of ranges, held to the golden embeddings."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reidkit.bundle import CALIBRATION, CALIBRATION_CACHE, INT8_MODELS, MANIFEST, Bundle, file_sha256, open_bundle
from reidkit.calibration import Calibration, Method
from reidkit.cli import console, options
from reidkit.cli.measuring import Settings, check_ranking
from reidkit.cli.outputs import check_outputs, check_writable
from reidkit.cli.pictures import read_pictures
from reidkit.cli.verify import hold_engines, hold_tensorrt_graph, int8_engines
from reidkit.data import is_data_set, load_split
from reidkit.deploy.verify import MAX_MAP_DROP, Parity
from reidkit.errors import ConfigError, ImageError
from reidkit.manifest import checkpoint_file
from reidkit.types import Split, Subset

if TYPE_CHECKING:
    from reidkit.deploy.quantize.calibrate import Observed
    from reidkit.deploy.quantize.pictures import Pictures

_Method = Literal["minmax", "entropy", "percentile", "mse"]
_USUAL: _Method = "minmax"


def quantize(
    bundle: options.BundlePath,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help="Pictures to learn ranges of: a data set or a folder (default: the table that the bundle has).",
        ),
    ] = None,
    images: Annotated[int | None, typer.Option("--images", help="How many of them (default: 512).")] = None,
    method: Annotated[
        _Method | None, typer.Option("--method", help="How a range comes from what was seen (default: minmax).")
    ] = None,
    percentile: Annotated[
        float | None, typer.Option("--percentile", help="Of --method percentile: what stays inside (default: 99.99).")
    ] = None,
    subset: Annotated[
        Subset | None, typer.Option("--subset", help="Of a data set (default: train, which nothing is measured on).")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="That chooses pictures (default: 0).")] = None,
    keep_float: Annotated[
        list[str] | None,
        typer.Option("--keep-float", metavar="LAYER", help="A layer that stays float; may be repeated."),
    ] = None,
    ranges: Annotated[
        Path | None,
        typer.Option("--ranges", help="The run in eight bits that this bundle is of: take what it has learned."),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Find the layers where it hurts, and keep the fewest in float.")
    ] = False,
    data: Annotated[Path | None, typer.Option("--data", help="Of --search: the data set to measure mAP on.")] = None,
    max_map_drop: Annotated[
        float | None,
        typer.Option(
            "--max-map-drop",
            min=0,
            help=f"Of --search: points of mAP (percent) that may be lost (default: {100 * MAX_MAP_DROP:g}).",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Of --search: draw what each block costs, as .png or .svg.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of ONNX Runtime, and that decode (default: one a core).")
    ] = None,
    skip_unreadable: options.SkipUnreadable = False,
    data_format: options.DataFormat = None,
    variant: options.DataVariant = None,
) -> list[Parity]:
    """Quantise a bundle: a table of ranges, a graph for processors, a graph for TensorRT; both verified at once.

    Ranges are learned once, through the decoding and the graph that inference has. --search runs the network with each
    block in float and all others in eight bits, and then looks for the fewest layers that have to stay float.
    """
    opened = open_bundle(bundle)
    check_writable(opened.path / MANIFEST)
    check_outputs({"--plot": plot})
    if calibration is None:
        given = {"--images": images is not None, "--method": method, "--percentile": percentile is not None}
        given |= {"--seed": seed is not None, "--subset": subset, "--skip-unreadable": skip_unreadable}
        options.refuse_idle(given, "without --calibration")
    elif ranges is None and method != "percentile":
        options.refuse_idle({"--percentile": percentile is not None}, f"of --method {method or _USUAL}")
    if ranges is not None:
        given = {"--method": method, "--percentile": percentile is not None, "--search": search}
        options.refuse_idle(given | {"--skip-unreadable": skip_unreadable}, "beside --ranges")
        if calibration is None:
            raise ConfigError(
                "Training rounds not every value that a graph does", fix="name what it learned from: --calibration DATA"
            )
    split = _to_search_on(data, search, plot, keep_float, max_map_drop, data_format, variant)
    if calibration is None and split is None:
        options.refuse_idle({"--format": data_format, "--variant": variant}, "without --calibration or --data")
    from reidkit.deploy.quantize.quantize import kept_in_float, read_table
    from reidkit.deploy.quantize.quantize import quantize as put_in  # all of which need onnx

    _check_before_pictures(opened, percentile, keep_float)
    if calibration is None:
        table = read_table(opened)
    else:
        pictures = _pictures(calibration, subset, data_format, variant)
        if ranges is None:
            observed = _observed(opened, pictures, images, seed or 0, skip=skip_unreadable, threads=threads)
            table = _table(opened, observed, method or _USUAL, percentile)
        else:
            table = _learned(opened, ranges, pictures, images, seed or 0, threads)
    if keep_float is not None:
        trained = () if ranges is None else table.floats  # which training has not rounded
        table = kept_in_float(table, [*trained, *keep_float])
    if split is not None:
        drop = MAX_MAP_DROP if max_map_drop is None else max_map_drop / 100
        table = kept_in_float(table, _searched(opened, table, split, drop, plot, threads))
    instead = "" if opened.calibration is None else ", in place of earlier ones"
    opened = put_in(opened, table)
    _tell(opened, table)
    rows, passed = hold_engines(opened, int8_engines(opened), precisions=["int8"])
    rows = [*rows, hold_tensorrt_graph(opened)]
    if not (passed and rows[-1].passed):
        _warn_of_failing(opened, rows, instead, trained=ranges is not None, searched=search)
        raise typer.Exit(1)
    return rows


def _warn_of_failing(bundle: Bundle, rows: Sequence[Parity], instead: str, *, trained: bool, searched: bool) -> None:
    """Says how to see what it costs, and what else there is; the last row is of the graph for TensorRT."""
    place = shlex.quote(str(bundle.path))
    ways = [f"`reid verify {place} --data ROOT --precision int8`"] if not all(row.passed for row in rows[:-1]) else []
    if not rows[-1].passed:
        ways.append(f"`reid verify {place} --data ROOT --runtime tensorrt --precision int8` where an engine was built")
    others = ["--keep-float LAYER"]
    others += [] if trained else ["other pictures (--calibration)", "another --method"]
    others += [] if trained or searched else ["--search"]
    cost = f" What they cost on real pictures is told by {' and '.join(ways)};" if ways else ""
    console.warn(
        f"{bundle.path.name} now has int8 graphs that fail{instead}.{cost} to quantise it otherwise, there is "
        f"{', '.join(others)}"
    )


def _to_search_on(
    data: Path | None,
    search: bool,
    plot: Path | None,
    keep_float: list[str] | None,
    max_map_drop: float | None,
    data_format: str | None,
    variant: str | None,
) -> Split | None:
    """The data set of --search, with all that would only be found wrong when the search has ended."""
    if not search:
        idle = {"--data": data, "--max-map-drop": max_map_drop is not None, "--plot": plot}
        options.refuse_idle(idle, "without --search")
        return None
    if data is None:
        raise ConfigError("--search measures on a data set", fix="name one with query and gallery: --data ROOT")
    options.refuse_idle({"--keep-float": keep_float}, "beside --search, which chooses")
    if plot is not None:
        from reidkit.report.quantization_plot import plot_format  # needs matplotlib

        plot_format(plot)
    split = load_split(data, data_format, variant=variant)
    check_ranking(split, Settings())
    return split


def _check_before_pictures(bundle: Bundle, percentile: float | None, keep_float: list[str] | None) -> None:
    """Refuses what would only be found wrong when all pictures were seen."""
    from reidkit.deploy.quantize.calibrate import quantizable_graph
    from reidkit.deploy.quantize.placement import place
    from reidkit.deploy.quantize.ranges import check_percentile

    if percentile is not None:
        check_percentile(percentile)
    if keep_float is not None:
        place(quantizable_graph(bundle), "cpu", floats=keep_float)


def _learned(
    bundle: Bundle,
    run: Path,
    pictures: "Pictures",
    images: int | None,
    seed: int,
    threads: int | None,
) -> Calibration:
    """The table by what a run has in its checkpoint: its ranges, and the layers that it kept in float."""
    from reidkit.deploy.quantize.calibrate import IMAGES
    from reidkit.deploy.quantize.quantize import trained_table
    from reidkit.models.checkpoint import load_floats, load_ranges

    checkpoint = checkpoint_file(run)
    learned = load_ranges(checkpoint)
    if learned is None:
        raise ConfigError(
            f"{checkpoint} has no ranges", expected="a run with a recipe such as qat-cpu", fix="leave out --ranges"
        )
    if bundle.manifest.provenance.source_sha256 != file_sha256(checkpoint):
        raise ConfigError(
            f"{bundle.path.name} was not made from {checkpoint}",
            got="ranges of other weights",
            fix=f"reid export {run} --out NAME.reid, and quantise that",
        )
    with console.progress_bar("seeing what training did not round") as progress:
        return trained_table(
            bundle,
            learned,
            pictures,
            floats=load_floats(checkpoint),
            images=IMAGES if images is None else images,
            seed=seed,
            threads=threads,
            progress=progress,
        )


def _pictures(root: Path, subset: Subset | None, data_format: str | None, variant: str | None) -> "Pictures":
    """What --calibration names: a data set's subset, also where its folder is named, or all pictures of a folder."""
    from reidkit.deploy.quantize.pictures import Pictures, pictures_of, pictures_tested_on

    if data_format is None and variant is None and root.exists() and not is_data_set(root):
        if subset is not None:
            raise ConfigError(f"{root} is no data set, and has no subsets", fix="leave out --subset, or name --format")
        crops = read_pictures(root).crops
        plain = Pictures(crops, root, f"folder {root.resolve().name}", "folder")
        return pictures_tested_on(root, [crop.path for crop in crops]) or plain
    return pictures_of(load_split(root, data_format, variant=variant), subset or "train")


def _observed(
    bundle: Bundle, pictures: "Pictures", images: int | None, seed: int, *, skip: bool, threads: int | None
) -> "Observed":
    from reidkit.deploy.quantize.calibrate import FEW, IMAGES, observe

    try:
        with console.progress_bar("calibrating") as progress:
            observed = observe(
                bundle,
                pictures,
                images=IMAGES if images is None else images,
                seed=seed,
                skip_unreadable=skip,
                threads=threads,
                progress=progress,
            )
    except ImageError as error:
        fix = "--skip-unreadable takes other pictures for such" + (f"; or {error.fix}" if error.fix else "")
        raise ImageError(error.problem, got=error.got, expected=error.expected, fix=fix) from error
    console.warn_unreadable(observed.unreadable)
    console.say(f"ranges seen on {len(observed.pictures)} pictures of {observed.dataset}, {observed.source}")
    if len(observed.pictures) < FEW:
        console.warn(f"{len(observed.pictures)} pictures show little of what values can be; {IMAGES} are usual")
    if observed.source in ("query", "gallery"):
        console.warn("these are pictures to test on: accuracy that is measured on them is of pictures that were seen")
    if silent := [name for name, seen in observed.values.items() if seen.low == seen.high == 0]:
        console.warn(f"0 on every picture: {', '.join(silent)}")
    return observed


def _table(bundle: Bundle, observed: "Observed", method: Method, percentile: float | None) -> Calibration:
    from reidkit.deploy.quantize.calibrate import calibration_of
    from reidkit.deploy.quantize.ranges import PERCENTILE

    share = PERCENTILE if percentile is None else percentile
    with console.spinner("working out ranges"):
        return calibration_of(bundle, observed, method, percentile=share)


def _searched(
    bundle: Bundle, table: Calibration, split: Split, drop: float, plot: Path | None, threads: int | None
) -> tuple[str, ...]:
    """Measures where it hurts, says so, and gives the layers that are to stay float.

    Raises:
        Exit: with 1, where no choice passes.
    """
    from reidkit.deploy.quantize.sensitivity import search as search_layers

    with console.progress_bar("searching") as progress:
        found = search_layers(bundle, table, split, max_map_drop=drop, threads=threads, progress=progress)
    rows = console.table(
        f"{split.name}: each block in float", "block", "layers", "work", "1 - cosine", "mAP", numbers=4
    )
    whole = found.rounded
    rows.add_row("none", "", "", f"{whole.error:.2e}", f"{100 * whole.mean_ap:.2f}")
    for row in found.groups:
        name = f"[bold green]{console.escape(row.name)}[/]" if row.kept else console.escape(row.name)
        cells = (str(len(row.layers)), f"{100 * row.share:.1f} %", f"{row.error:.2e}", f"{100 * row.trial.mean_ap:.2f}")
        rows.add_row(name, *cells)
    console.out.print(rows)
    floats = found.chosen.floats
    agreement = found.chosen.agreement
    allowed = f"lost where {100 * drop:g} may be"
    if found.chosen.drop < 0:
        allowed = f"gained where {100 * drop:g} may be lost"
    lost = (
        f"{100 * abs(found.chosen.drop):.2f} points of {100 * found.mean_ap:.2f} are {allowed}, "
        f"mean cosine {agreement.mean_cosine:.4f} where {agreement.least_cosine:g} has to be"
    )
    if floats and found.met:
        stay = "1 layer stays" if len(floats) == 1 else f"{len(floats)} layers stay"
        console.say(f"{stay} float, {100 * found.float_share:.1f} % of the work: {lost}")
    elif found.met:
        console.say(f"no layer has to stay float: {lost}")
    if plot is not None:
        from reidkit.report.quantization_plot import write_sensitivity_plot

        write_sensitivity_plot(
            plot,
            found.groups,
            error=whole.error,
            drop=whole.drop,
            max_drop=drop,
            title=f"{bundle.manifest.name} on {split.name}",
        )
        console.say(f"wrote {plot}")
    if not found.met:
        console.warn(f"no choice of layers meets it: with {len(floats)} in float, {lost}. The bundle is as it was")
        raise typer.Exit(1)
    if floats:
        console.say(f"The choice was made by {split.name}: accuracy on it is flattered")
    return floats


def _tell(bundle: Bundle, table: Calibration) -> None:
    """What was written, and what stays float."""
    for name in (CALIBRATION, CALIBRATION_CACHE, *INT8_MODELS.values()):
        console.say(f"wrote {bundle.path / name}: {(bundle.path / name).stat().st_size / 1e6:.1f} MB")
    if table.floats:
        console.say(f"in float: {', '.join(table.floats)}")
