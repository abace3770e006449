"""`reid quantize`: a bundle gets a table of ranges, and from that the graphs for either kind of engine."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from reidkit.atomic import output_file
from reidkit.bundle import CALIBRATION, CALIBRATION_CACHE, INT8_MODELS, MODEL, Bundle, file_sha256, replace_files
from reidkit.calibration import Calibration, EngineKind, Range, calibration_bytes, parse_calibration
from reidkit.deploy.quantize.calibrate import (
    IMAGES,
    calibration_of,
    observe,
    other_graph,
    quantizable_graph,
)
from reidkit.deploy.quantize.emit import quantized_graph
from reidkit.deploy.quantize.pictures import Pictures
from reidkit.deploy.quantize.placement import PLACEMENT, grid_names, place
from reidkit.deploy.quantize.tensorrt_cache import calibration_cache
from reidkit.deploy.verify import Parity, check_parity
from reidkit.errors import BundleError
from reidkit.runtime import load
from reidkit.types import Progress, no_progress


def quantize(bundle: Bundle, table: Calibration) -> Bundle:
    """Puts a table and the graphs that come of it into a bundle, in place of earlier ones.

    Raises:
        BundleError: the table is of another graph or an older placement; or the bundle was replaced meanwhile.
        ConfigError: it keeps a layer in float that the graph has not.
        ModelError: the graph cannot be quantised, or the table lacks something.
        OutputError: the bundle cannot be written to.
    """
    model = quantizable_graph(bundle)
    check_table(bundle, table)
    files = {name: _serialized(model, kind, table) for kind, name in INT8_MODELS.items()}
    files[CALIBRATION] = calibration_bytes(table)
    rounded = place(model, "tensorrt", floats=table.floats).owners
    files[CALIBRATION_CACHE] = calibration_cache(table, rounded)
    return replace_files(bundle, files, stale="int8")


def read_table(bundle: Bundle) -> Calibration:
    """The table that a bundle was quantised by.

    Raises:
        BundleError: it was not; or the table cannot be read, is of another graph or of an older placement.
    """
    if bundle.calibration is None:
        raise BundleError(
            f"{bundle.path.name} was not quantised",
            expected=f"a {CALIBRATION} inside",
            fix=f"reid quantize {bundle.path} --calibration DIR",
        )
    table = parse_calibration(bundle.calibration.read_bytes(), source=str(bundle.calibration))
    check_table(bundle, table)
    return table


def check_table(bundle: Bundle, table: Calibration) -> None:
    """Refuses a table that was not made for a bundle's graph.

    Raises:
        BundleError: it is of another graph, or of a placement that this version does not have.
    """
    if table.graph != bundle.manifest.files.get(MODEL):
        raise other_graph(bundle, table.graph)
    if table.placement != PLACEMENT:
        raise BundleError(
            "The table of ranges was made by a reidkit that rounded other values",
            got=f"placement {table.placement}",
            expected=PLACEMENT,
            fix="quantise the bundle with pictures: reid quantize BUNDLE --calibration DIR",
        )


@contextmanager
def on_a_processor(bundle: Bundle, graph: bytes) -> Iterator[Bundle]:
    """A bundle of one quantised graph for as long as the block runs, which engines open as they will open the real one.

    Raises:
        OutputError: the folder for temporary files cannot be written to.
    """
    with TemporaryDirectory(prefix="reidkit-") as folder:
        file = Path(folder) / INT8_MODELS["cpu"]
        with output_file(file) as temporary:
            temporary.write_bytes(graph)
        yield Bundle(Path(folder), replace(bundle.manifest, files={file.name: file_sha256(file)}))


def check_tensorrt_graph(bundle: Bundle) -> Parity:
    """Holds the graph for TensorRT to the golden embeddings without TensorRT: ONNX Runtime runs it, slowly.

    Raises:
        BundleError: the bundle was not quantised.
    """
    file = bundle.int8_model("tensorrt")
    if file is None:
        read_table(bundle)  # which says so
    assert file is not None
    with on_a_processor(bundle, file.read_bytes()) as alone:
        parity = check_parity(load(alone, "onnxruntime", device="cpu", precision="int8"), bundle.golden())
    return replace(parity, runtime="graph for tensorrt")


def kept_in_float(table: Calibration, floats: Collection[str]) -> Calibration:
    """The same table with other layers left in float: its ranges hold for any choice."""
    return replace(table, floats=tuple(sorted(set(floats))))


def trained_table(
    bundle: Bundle,
    learned: Mapping[str, Range],
    pictures: Pictures,
    *,
    floats: Collection[str] = (),
    images: int = IMAGES,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Calibration:
    """The table of a bundle, by the ranges that quantisation-aware training has learned.

    Values that training does not round, such as an instance normalisation's half of IBN, get the range that they have
    on training pictures.

    Args:
        bundle: of the trained network.
        learned: ranges by grid, as `placement.rounded_layers` names them.
        pictures: that were trained on, to see the other values on.
        floats: names of the layers that training kept in float.
        images: how many of the pictures.
        seed: that chooses those.
        threads: that the graph runs on, and that decode.
        progress: over the pictures.

    Raises:
        BundleError: the graph has no such grid.
        ModelError, DataError, ImageError: as `observe` and `calibration_of`.
    """
    names = grid_names(quantizable_graph(bundle))
    if unknown := sorted(set(learned) - set(names.values())):
        raise BundleError(f"{bundle.path.name} has no grid of this name", got=", ".join(unknown[:5]))
    ranges = {value: learned[name] for value, name in names.items() if name in learned}
    seen = observe(bundle, pictures, images=images, seed=seed, threads=threads, progress=progress)
    return kept_in_float(calibration_of(bundle, seen, "qat", learned=ranges), floats)


def _serialized(model: onnx.ModelProto, kind: EngineKind, table: Calibration) -> bytes:
    graph = quantized_graph(model, place(model, kind, floats=table.floats), table)
    graph.producer_name = "reidkit"
    return graph.SerializeToString(deterministic=True)
