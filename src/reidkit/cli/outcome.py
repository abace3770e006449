"""What a training ends with beside its checkpoint: a verified bundle, its accuracy, its card, and curves."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from reidkit.atomic import check_free
from reidkit.bundle import SUFFIX, Bundle, check_place, open_bundle
from reidkit.cli import console
from reidkit.cli.evaluate import print_reports, record_measured
from reidkit.cli.extras import explained
from reidkit.cli.measuring import Settings, check_ranking, measure
from reidkit.cli.verify import hold_engines, hold_tensorrt_graph
from reidkit.deploy.verify import Parity
from reidkit.errors import ConfigError, OutputError, ReidkitError
from reidkit.evaluate import Report
from reidkit.manifest import CHECKPOINT, LicenceClass
from reidkit.runtime import RuntimeName, installed
from reidkit.train.journal import LOG
from reidkit.types import Split


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files stand.

    Attributes:
        bundle: NAME.reid.
        card: the card's two files, without suffix.
        curves: a PNG.
    """

    bundle: Path
    card: Path
    curves: Path

    def check(self, *, bundle: bool, overwrite: bool) -> None:
        """Refuses places where something stands that may not be replaced: asked first, it spares the training.

        Args:
            bundle: whether there will be a bundle and its card.
            overwrite: replace files that are there.

        Raises:
            OutputError: see `reidkit.atomic.check_free`.
        """
        if bundle:
            check_place(self.bundle, overwrite=overwrite)
            for suffix in (".md", ".html"):
                check_free(self.card.with_name(self.card.name + suffix), overwrite=overwrite)
        check_free(self.curves, overwrite=overwrite)


def places_in(run: Path) -> Places:
    """The places in the folder of a run: what is named at all is named after the folder.

    Raises:
        ConfigError: the folder has no name, or that of a bundle.
    """
    name = run.resolve().name
    if not name or name.endswith(SUFFIX):
        raise ConfigError("--out is the folder of the run", got=run, fix="choose a name that does not end in .reid")
    return Places(run / f"{name}{SUFFIX}", run / f"{name}-card", run / "curves.png")


@dataclass(slots=True)
class Outcome:
    """What came of it.

    Attributes:
        parities: engines that could be compared with PyTorch.
        report: accuracy in floats; None where it was not measured.
        status: 0; 1 when an engine does not give what PyTorch gave; 2 when a file could not be made.
    """

    parities: list[Parity] = field(default_factory=list)
    report: Report | None = None
    status: int = 0


def finish(
    run: Path,
    places: Places,
    split: Split,
    *,
    bundle: bool = True,
    licence: LicenceClass = "unknown",
    device: str = "cpu",
    cached: bool = True,
    overwrite: bool = False,
) -> Outcome:
    """Exports a run, quantises it where it was trained for that, verifies, measures and describes it.

    One thing that cannot be made costs none of the others, and never the checkpoint.

    Args:
        run: its folder.
        places: of the files.
        split: whose query and gallery are measured on, where there are both.
        bundle: without it, there are only the curves.
        licence: class of licence of the weights.
        device: that the run was on; accuracy is measured there, too, but that in eight bits on the processor.
        cached: keep what was embedded.
        overwrite: replace files that are there.
    """
    outcome = Outcome()
    exported: Bundle | None = None
    if bundle:
        with _apart(f"{places.bundle} with its card", outcome):
            exported = _export(run, places.bundle, licence, overwrite=overwrite)
    if exported is not None:
        with _apart("the graphs in eight bits", outcome):
            exported = _quantized(run, exported, split)
        outcome.parities, passed = hold_engines(exported)
        if not passed:
            outcome.status = 1
            console.warn(f"{places.bundle} is not verified: an engine above does not give what PyTorch gave")
        if exported.calibration is not None:
            with _apart("the check of the graph for TensorRT", outcome):
                _hold_tensorrt_graph(exported, outcome)
        with _apart("the accuracy", outcome):
            outcome.report = _measure(exported, split, device, cached=cached)
        if outcome.report is not None and exported.calibration is not None:
            with _apart("the accuracy in eight bits", outcome):
                _measure_rounded(exported, split, cached=cached)
        with _apart("the card", outcome):
            _write_card(exported, places.card, overwrite=overwrite)
    with _apart(str(places.curves), outcome):
        _write_curves(run, places.curves, title=places.bundle.stem)
    return outcome


@contextmanager
def _apart(what: str, outcome: Outcome) -> Iterator[None]:
    """Says why something is missing and goes on."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = explained(error)
        if missing is None:
            raise
        console.warn(f"{what} is left out: {missing.problem}; {missing.fix} brings it")
    except (ReidkitError, OSError) as error:
        outcome.status = outcome.status or 2
        console.show_error(error if isinstance(error, ReidkitError) else OutputError(f"{what} is missing: {error}"))


def _export(run: Path, path: Path, licence: LicenceClass, *, overwrite: bool) -> Bundle:
    from reidkit.export.torch_export import export_checkpoint

    with console.spinner("exporting"):
        exported = export_checkpoint(run, path, licence=licence, overwrite=overwrite)
    console.say(f"wrote {path}")
    return exported


def _quantized(run: Path, bundle: Bundle, split: Split) -> Bundle:
    """The bundle with graphs in eight bits, where the run was for those: the checkpoint has their ranges then."""
    from reidkit.models.checkpoint import load_floats, load_ranges

    checkpoint = run / CHECKPOINT
    ranges = load_ranges(checkpoint)
    if ranges is None:
        return bundle
    from reidkit.deploy.quantize.pictures import pictures_of
    from reidkit.deploy.quantize.quantize import quantize, trained_table

    with console.progress_bar("seeing what training did not round") as progress:
        floats = load_floats(checkpoint)
        return quantize(bundle, trained_table(bundle, ranges, pictures_of(split), floats=floats, progress=progress))


def _hold_tensorrt_graph(bundle: Bundle, outcome: Outcome) -> None:
    row = hold_tensorrt_graph(bundle)
    outcome.parities.append(row)
    if not row.passed:
        outcome.status = 1
        console.warn(f"{bundle.path} is not verified: its graph for TensorRT does not give what PyTorch gave")


def _measure(bundle: Bundle, split: Split, device: str, *, cached: bool) -> Report | None:
    if not split.query or not split.gallery:
        console.say(f"accuracy is not measured: {split.root} has no query and gallery")
        return None
    on_gpu = device.startswith("cuda")
    runtime: RuntimeName = "pytorch" if on_gpu else installed(bundle)[0]
    settings = Settings(device=device if on_gpu else "cpu", cached=cached)
    check_ranking(split, settings)
    return _recorded(bundle, split, runtime, settings)


def _measure_rounded(bundle: Bundle, split: Split, *, cached: bool) -> Report:
    """In eight bits, where every machine can: on the processor; says so where that is not what was trained for."""
    report = _recorded(bundle, split, "onnxruntime", Settings(device="cpu", precision="int8", cached=cached))
    quantization = (bundle.manifest.provenance.recipe or {}).get("quantization") or {}
    if quantization.get("engine") == "tensorrt":
        places = f"{shlex.quote(str(bundle.path))} --data {shlex.quote(str(split.root))}"
        console.warn(
            "this accuracy in eight bits, which the card has, is of the graph for processors, and training was for "
            f"TensorRT: `reid evaluate {places} --runtime tensorrt --precision int8 --record` measures that"
        )
    return report


def _recorded(bundle: Bundle, split: Split, runtime: RuntimeName, settings: Settings) -> Report:
    report = measure(bundle, split, runtime, settings, model=bundle.manifest.name)
    print_reports([report])
    record_measured([(bundle, report)])
    console.say(f"recorded in {bundle.path}")
    return report


def _write_card(bundle: Bundle, path: Path, *, overwrite: bool) -> None:
    from reidkit.report.card import write_card  # needs jinja2

    # Opened again: it has been measured since.
    markdown, page = write_card(open_bundle(bundle.path), path, overwrite=overwrite)
    console.say(f"wrote {markdown} and {page}")


def _write_curves(run: Path, path: Path, *, title: str) -> None:
    from reidkit.report.training_curves import write_training_curves  # needs matplotlib

    write_training_curves(run / LOG, path, title=title)
    console.say(f"wrote {path}")
