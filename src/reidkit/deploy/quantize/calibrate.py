"""What the values of a graph are on pictures: seen once, through the decoding and the graph that inference has."""

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
from onnx import helper

import reidkit
from reidkit.bundle import MODEL, Bundle, file_sha256
from reidkit.calibration import Calibration, Method, Picture, Range, Source
from reidkit.decoding import stream_crops
from reidkit.deploy.graph_cleanup import cleaned
from reidkit.deploy.graph_links import Links, copied
from reidkit.deploy.quantize.grids import weight_steps
from reidkit.deploy.quantize.histogram import Histogram
from reidkit.deploy.quantize.pictures import Pictures, in_order_of_choice
from reidkit.deploy.quantize.placement import PLACEMENT, Layer, place, quantizable_layers, refuse_quantized
from reidkit.deploy.quantize.ranges import PERCENTILE, range_of
from reidkit.errors import BundleError, ConfigError, DataError, ImageError, ModelError
from reidkit.onnx_file import first_line, read_model, standard_opset
from reidkit.runtime.contract import CROPS
from reidkit.types import Crop, Progress, no_progress

IMAGES = 512
FEW = 32
"""With fewer pictures than this, whoever quantises is told so."""

_LEAST = 2  # pictures
_BATCH = 8  # crops at a time: every value of all of them is held at once
_OLDEST_OPSET = 13  # with steps by channel
_ERRORS_ONLY = 3


@dataclass(frozen=True, slots=True)
class Observed:
    """What the values of a bundle's graph were seen to be.

    Attributes:
        graph: sha256 of the bundle's graph.
        values: those that a placement may round, by name.
        pictures: that they were seen on.
        dataset: that those are of.
        source: the subset.
        seed: that chose them.
        unreadable: what was wrong with pictures that were left out.
    """

    graph: str
    values: Mapping[str, Histogram]
    pictures: tuple[Picture, ...]
    dataset: str
    source: Source
    seed: int
    unreadable: tuple[ImageError, ...] = ()


def quantizable_graph(bundle: Bundle) -> onnx.ModelProto:
    """A bundle's graph, cleaned and in an opset that has steps by channel.

    Raises:
        BundleError: the bundle has no ONNX graph.
        ModelError: the graph cannot be read, is quantised already, has nothing to quantise, or is of an older opset
            that cannot be told in a newer one.
    """
    if bundle.graph_format != "onnx":
        raise BundleError(
            f"{bundle.path.name} has no ONNX graph to quantise",
            got=f"a graph of {bundle.graph_format}",
            fix="quantise it with the tool that made it, and import what comes of it",
        )
    model = read_model(bundle.model)
    refuse_quantized(model)
    if standard_opset(model) < _OLDEST_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, _OLDEST_OPSET)
        except Exception as error:  # the converter's errors have no base class of their own
            raise ModelError(
                f"{bundle.model} cannot be told in opset {_OLDEST_OPSET}, the first that quantises by channel",
                got=f"opset {standard_opset(model)}; {first_line(error)}",
                fix="export the network again in a newer opset",
            ) from error
    model = cleaned(model)
    quantizable_layers(model)  # which refuses
    return model


def observe(
    bundle: Bundle,
    pictures: Pictures,
    *,
    images: int = IMAGES,
    seed: int = 0,
    skip_unreadable: bool = False,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Observed:
    """Runs a bundle's graph on pictures and counts what its values are.

    Memory holds a histogram for each value, and all values of eight crops.

    Args:
        bundle: an open bundle.
        pictures: to choose from.
        images: how many; all of them where there are fewer.
        seed: that chooses.
        skip_unreadable: leave out pictures that cannot be decoded, and take others for them.
        threads: that the graph runs on, and that decode; None takes all cores.
        progress: over the pictures.

    Raises:
        BundleError, ModelError: as `quantizable_graph`; or ONNX Runtime does not know an operator or fails, or a value
            is NaN or infinite on a picture.
        ConfigError: fewer than two images are asked for, or the seed is negative.
        DataError: fewer than two pictures are there that can be read.
        ImageError: a picture cannot be decoded, and is not to be skipped.
    """
    if images < _LEAST:
        raise ConfigError(
            "Too few images to calibrate with", got=images, expected=f"{_LEAST} or more; {IMAGES} are usual"
        )
    model = quantizable_graph(bundle)
    names = sorted({owner for kind in ("cpu", "tensorrt") for owner in place(model, kind).owners.values()})
    if len(pictures.crops) < _LEAST:
        raise _too_few(pictures, len(pictures.crops), 0)
    session = _session(model, names, threads)
    seen = {name: Histogram() for name in names}
    total = min(images, len(pictures.crops))
    errors: list[ImageError] = []
    used: list[Picture] = []
    batch, several = bundle.manifest.batch or _BATCH, bundle.manifest.batch is None
    with closing(_readable(pictures, bundle, seed, threads, errors, skip=skip_unreadable)) as readable:
        chosen = islice(readable, total)
        while part := list(islice(chosen, batch)):
            rows = len(part)
            crops = np.stack([crop for _, crop in part])
            if not several and rows < batch:  # a graph of one batch alone: the last is filled up, and not counted
                crops = np.concatenate([crops, np.repeat(crops[-1:], batch - rows, axis=0)])
            for name, result in zip(names, _run(session, names, crops), strict=True):
                values = np.asarray(result, np.float32)
                _count(seen[name], values[:rows] if len(values) == len(crops) else values, name, part)
            used += [_picture(crop, pictures) for crop, _ in part]
            progress(len(used), total)
    if len(used) < _LEAST:
        raise _too_few(pictures, len(used), len(errors))
    return Observed(
        graph=bundle.manifest.files[MODEL],
        values=seen,
        pictures=tuple(used),
        dataset=pictures.dataset,
        source=pictures.source,
        seed=seed,
        unreadable=tuple(errors),
    )


def calibration_of(
    bundle: Bundle,
    observed: Observed,
    method: Method,
    *,
    percentile: float = PERCENTILE,
    floats: Collection[str] = (),
    learned: Mapping[str, Range] | None = None,
) -> Calibration:
    """The table of a bundle, from what its values were seen to be.

    Args:
        bundle: that they were observed on.
        observed: those values.
        method: that makes ranges of them, see `ranges.range_of`. "qat" takes those that training has learned, and for
            other values all of what was seen.
        percentile: of that method.
        floats: layers that stay float.
        learned: ranges from training, by value; of method "qat" alone.

    Raises:
        BundleError: they were observed on another graph.
        ConfigError: as `range_of` and `place`; or learned ranges and another method.
        ModelError: as `quantizable_graph`, or no layer is left.
    """
    if observed.graph != bundle.manifest.files[MODEL]:
        raise other_graph(bundle, observed.graph)
    if (method == "qat") != (learned is not None):
        raise ConfigError("Learned ranges are of quantisation-aware training, and of nothing else", got=method)
    model = quantizable_graph(bundle)
    for kind in ("cpu", "tensorrt"):
        place(model, kind, floats=floats)  # which refuses
    ranges = {
        name: range_of(seen, "minmax" if method == "qat" else method, percentile=percentile)
        for name, seen in observed.values.items()
    }
    return Calibration(
        graph=observed.graph,
        placement=PLACEMENT,
        method=method,
        percentile=percentile if method == "percentile" else None,
        ranges={**ranges, **(learned or {})},
        scales=_steps(model, quantizable_layers(model), bundle),
        floats=tuple(sorted(set(floats))),
        dataset=observed.dataset,
        source=observed.source,
        seed=observed.seed,
        pictures=observed.pictures,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        reidkit=reidkit.__version__,
    )


def other_graph(bundle: Bundle, digest: str) -> BundleError:
    """The error for a table or an observation of another graph than the bundle's."""
    return BundleError(
        f"The table of ranges was made from another graph than that of {bundle.path.name}",
        got=f"sha256 {digest[:16]}…",
        expected=f"sha256 {bundle.manifest.files.get(MODEL, '')[:16]}…",
        fix="quantise the bundle with pictures: reid quantize BUNDLE --calibration DIR",
    )


def _steps(model: onnx.ModelProto, layers: Sequence[Layer], bundle: Bundle) -> dict[str, tuple[float, ...]]:
    links, steps = Links(model.graph), {}
    for layer in layers:
        weight = links.array(layer.weight)
        assert weight is not None
        try:
            steps[layer.name] = tuple(map(float, weight_steps(weight, layer.axis)))
        except ValueError as error:
            raise ModelError(f"{bundle.model} cannot be quantised: layer {layer.name} has {error}") from error
    return steps


def _session(model: onnx.ModelProto, names: Sequence[str], threads: int | None) -> onnxruntime.InferenceSession:
    """A session that gives every value; fused as little as that asks for."""
    told = copied(model)
    del told.graph.output[:]
    told.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(told.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base class of their own
        raise _not_run("cannot open the graph", error) from error


def _run(session: onnxruntime.InferenceSession, names: Sequence[str], crops: np.ndarray) -> Sequence[object]:
    try:
        return session.run(names, {CROPS: crops})
    except Exception as error:
        raise _not_run("fails on calibration pictures", error) from error


def _not_run(what: str, error: Exception) -> ModelError:
    return ModelError(
        f"onnxruntime {onnxruntime.__version__}, which ranges are learned with, {what}",
        got=first_line(error),
        fix="update onnxruntime, or export the network with standard operators",
    )


def _readable(
    pictures: Pictures, bundle: Bundle, seed: int, threads: int | None, errors: list[ImageError], *, skip: bool
) -> Generator[tuple[Crop, np.ndarray], None, None]:
    """The crops that can be decoded, in the order of choice."""
    order = in_order_of_choice(pictures.crops, seed)
    files = [crop.path for crop in order]
    # In threads: of all these files, a few hundred are taken.
    stream = stream_crops(files, bundle.manifest.input, workers=threads, ahead=2 * _BATCH, processes=False)
    with closing(stream):
        for crop, decoded in zip(order, stream, strict=True):
            if not isinstance(decoded, ImageError):
                yield crop, decoded
            elif skip:
                errors.append(decoded)
            else:
                raise decoded


def _count(seen: Histogram, values: np.ndarray, name: str, part: Sequence[tuple[Crop, np.ndarray]]) -> None:
    try:
        seen.add(values)
    except ValueError as error:
        files = ", ".join(crop.path.name for crop, _ in part[:3])
        raise ModelError(
            f"Value {name!r} of the graph is {error} on calibration pictures",
            got=f"in a batch that begins with {files}",
            expected="finite numbers",
            fix="check the pre-processing that the bundle was imported with, and its weights",
        ) from error


def _picture(crop: Crop, pictures: Pictures) -> Picture:
    name = crop.path.relative_to(pictures.root) if crop.path.is_relative_to(pictures.root) else crop.path.name
    return Picture(str(name).replace("\\", "/"), file_sha256(crop.path))


def _too_few(pictures: Pictures, readable: int, unreadable: int) -> DataError:
    broken = f", {unreadable} unreadable" if unreadable else ""
    return DataError(
        f"{pictures.root} has too few pictures to calibrate with",
        got=f"{readable}{broken}",
        expected=f"{_LEAST} or more; {IMAGES} are usual",
        fix="name a data set, or a folder with crops of many people",
    )
