"""What eight bits give and cost on processors: graphs beside each other, and accuracy by method and number of pictures.

    python bench/quantization.py graphs BUNDLE DATA [--batch 1 16] [--threads 2] [--images 128]
    python bench/quantization.py sweep BUNDLE DATA [--images 32 128 512 2048] [--plot sweep.png]

`graphs` runs the float graph and the quantised ones in turns on ONNX Runtime and OpenVINO: ours for processors, the
same with its tail rounded by ONNX Runtime's own tool, ours for TensorRT, that tool with its defaults (which rounds the
tail, too) and as it is recommended for TensorRT, and NNCF's where that is installed. Ratios are of the same engine's
float graph in the same run; cosines are to the float embeddings of the data set's query pictures. Last comes which of
them TensorRT-RTX's parser accepts, with pixels cast first as `reid build` does; it is left out where that is not
installed, and needs no card.

`sweep` quantises by every method from so many pictures of the train subset, and measures on query and gallery.
"""

import argparse
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from reidkit.bundle import Bundle, open_bundle
from reidkit.calibration import Method
from reidkit.data import load_split
from reidkit.deploy.quantize.calibrate import calibration_of, observe, quantizable_graph
from reidkit.deploy.quantize.emit import quantized_graph
from reidkit.deploy.quantize.pictures import in_order_of_choice, pictures_of
from reidkit.deploy.quantize.placement import place
from reidkit.deploy.quantize.quantize import quantize
from reidkit.deploy.typed_graph import typed_graph
from reidkit.deploy.verify import check_accuracy, measure_on
from reidkit.imaging import load_crop
from reidkit.report.quantization_plot import CalibrationRow, Level, write_calibration_plot
from reidkit.runtime import load
from reidkit.runtime.flavour import LIBRARIES, Flavour, open_flavour
from reidkit.runtime.openvino_core import CORE
from reidkit.types import Split

_METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile", "mse")
_ROUNDS = 15
_FOR_COSINES = 256

Run = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    options = arguments()
    bundle, split = open_bundle(options.bundle), load_split(options.data)
    if options.what == "graphs":
        graphs(bundle, split, options)
    else:
        sweep(bundle, split, options)


def graphs(bundle: Bundle, split: Split, options: argparse.Namespace) -> None:
    spec = bundle.manifest.input
    train = [load_crop(crop.path, spec) for crop in in_order_of_choice(split.train, 0)[: options.images[0]]]
    asked = np.stack([load_crop(crop.path, spec) for crop in in_order_of_choice(split.query, 0)[:_FOR_COSINES]])
    files = dict(quantised_files(bundle, split, np.stack(train), len(train)))
    print(f"{bundle.path.name}, {options.threads} threads, ranges of {len(train)} pictures")
    print(
        f"{'engine':<12}{'graph':<28}" + "".join(f"{f'ms, {b}':>10}{'ratio':>7}" for b in options.batch) + "   cosine"
    )
    for engine, opened in (("onnxruntime", on_onnxruntime), ("openvino", on_openvino)):
        runs = {
            name: opened(data, options.threads)
            for name, data in files.items()
            if isinstance(data, bytes) or engine == "openvino"
        }
        truth = embed(runs["float32"], asked)
        times = {batch: taken_in_turns(runs, asked[:batch]) for batch in options.batch}
        for name, run in runs.items():
            cells = "".join(
                f"{1e3 * times[batch][name]:>10.2f}{times[batch]['float32'] / times[batch][name]:>7.2f}"
                for batch in options.batch
            )
            print(f"{engine:<12}{name:<28}{cells}   {mean_cosine(embed(run, asked), truth):.6f}", flush=True)
    if importlib.util.find_spec(LIBRARIES["tensorrt-rtx"]) is not None:
        flavour = open_flavour("tensorrt-rtx")
        for name, data in files.items():
            if isinstance(data, bytes):
                print(f"TensorRT-RTX {flavour.version}, {name}: {parsed(flavour, data)}")


def quantised_files(
    bundle: Bundle, split: Split, train: np.ndarray, images: int
) -> Iterator[tuple[str, bytes | openvino.Model]]:
    """The graphs that are compared, by name; OpenVINO's own as its models."""
    yield "float32", bundle.model.read_bytes()
    model = quantizable_graph(bundle)
    table = calibration_of(bundle, observe(bundle, pictures_of(split), images=images), "minmax")
    ours = quantized_graph(model, place(model, "cpu"), table)
    yield "ours, for processors", ours.SerializeToString()
    yield "ours, tail rounded, too", with_tail_rounded(ours, train)
    yield "ours, for TensorRT", quantized_graph(model, place(model, "tensorrt"), table).SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        prepared, written = f"{folder}/prepared.onnx", f"{folder}/quantised.onnx"
        quant_pre_process(str(bundle.model), prepared, skip_symbolic_shape=True)
        signed: dict[str, Any] = {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": True,
            "QuantizeBias": False,
        }
        for name, kind, more in (
            ("ONNX Runtime's, defaults", QuantType.QUInt8, None),
            ("ONNX Runtime's, TensorRT", QuantType.QInt8, signed),
        ):
            quantize_static(
                prepared,
                written,
                Reader(train),
                quant_format=QuantFormat.QDQ,
                activation_type=kind,
                weight_type=QuantType.QInt8,
                per_channel=True,
                extra_options=more,
            )
            yield name, Path(written).read_bytes()
    if importlib.util.find_spec("nncf") is not None:
        import nncf  # pyright: ignore[reportMissingImports]  (a comparison, where somebody has it)

        source = CORE.read_model(str(bundle.model))
        yield "nncf", nncf.quantize(source, nncf.Dataset([crop[None] for crop in train]), subset_size=len(train))


def with_tail_rounded(graph: onnx.ModelProto, train: np.ndarray) -> bytes:
    """The graph with what ONNX Runtime's tool adds by its defaults behind the last value that is rounded."""
    ahead: set[str] = set()  # values that a rounded one is made of
    tail = []
    for node in reversed(graph.graph.node):
        if node.op_type == "QuantizeLinear" or ahead.intersection(node.output):
            ahead.update(node.input)
        elif node.op_type != "DequantizeLinear":
            tail.append(node.name)
    with tempfile.TemporaryDirectory() as folder:
        source, written = f"{folder}/source.onnx", f"{folder}/quantised.onnx"
        onnx.save(graph, source)
        quantize_static(
            source,
            written,
            Reader(train),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_quantize=tail,
        )
        return Path(written).read_bytes()


def parsed(flavour: Flavour, graph: bytes) -> str:
    """Whether a flavour's parser takes a graph with types as `reid build` gives them; if not, its first word on it."""
    typed = typed_graph(onnx.load_from_string(graph), "float32", rounded_by_us=True)
    log = flavour.log()
    network = flavour.network(flavour.trt.Builder(log))
    parser = flavour.parser(network, log)
    if parser.parse(typed.SerializeToString()):
        return "parsed"
    return f"refused: {parser.get_error(0).desc().splitlines()[0]}"


class Reader(CalibrationDataReader):
    """Pictures for ONNX Runtime's tool, one at a time."""

    def __init__(self, crops: np.ndarray) -> None:
        self._left = iter(crops)

    def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        crop = next(self._left, None)
        return None if crop is None else {"crops": crop[None]}


def on_onnxruntime(graph: bytes | openvino.Model, threads: int) -> Run:
    assert isinstance(graph, bytes)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else it slows down whoever is next
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda crops: np.asarray(session.run(None, {"crops": crops})[0])


def on_openvino(graph: bytes | openvino.Model, threads: int) -> Run:
    model = CORE.read_model(graph) if isinstance(graph, bytes) else graph
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = CORE.compile_model(model, "CPU", config).create_infer_request()
    return lambda crops: request.infer({0: crops})[0].copy()


def taken_in_turns(runs: dict[str, Run], crops: np.ndarray) -> dict[str, float]:
    """Median seconds of each, one call after the other in every round."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(_ROUNDS + 2):
        for name, run in runs.items():
            started = time.perf_counter()
            run(crops)
            if turn >= 2:
                taken[name].append(time.perf_counter() - started)
    return {name: float(np.median(times)) for name, times in taken.items()}


def embed(run: Run, crops: np.ndarray) -> np.ndarray:
    return np.concatenate([run(crops[i : i + 16]) for i in range(0, len(crops), 16)])


def mean_cosine(got: np.ndarray, truth: np.ndarray) -> float:
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (got.astype(np.float64), truth.astype(np.float64)))
    return float((a * b).sum(axis=1).mean())


def sweep(bundle: Bundle, split: Split, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / bundle.path.name
        shutil.copytree(bundle.path, copy, ignore=shutil.ignore_patterns("engines"))
        tried = open_bundle(copy)
        truth = measure_on(load(tried), split)
        print(f"{bundle.path.name} on {split.name}, float32: mAP {100 * truth.report.mean_ap:.2f}")
        print("method        images  seconds      mAP   change                rank-1   min cos  mean cos  top 10")
        rows = []
        for images in options.images:
            started = time.perf_counter()
            seen = observe(tried, pictures_of(split), images=images)
            seconds = time.perf_counter() - started
            for method in options.method:
                tried = quantize(tried, calibration_of(tried, seen, method))
                found = check_accuracy(truth, measure_on(load(tried, precision="int8"), split))
                low, high = found.change.interval
                print(
                    f"{method:<12}{len(seen.pictures):>8}{seconds:>9.1f}{100 * found.mean_ap[1]:>9.2f}"
                    f"{100 * found.change.difference:>+9.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
                    f"{100 * found.rank1.difference:>+9.2f}{found.min_cosine:>10.4f}{found.mean_cosine:>10.5f}"
                    f"{100 * found.top:>8.2f}",
                    flush=True,
                )
                rows.append((method, len(seen.pictures), found.mean_ap[1]))
    if options.plot:
        name = bundle.manifest.name
        lines = [CalibrationRow(method, images, mean_ap, name) for method, images, mean_ap in rows]
        write_calibration_plot(options.plot, lines, [Level("float32", truth.report.mean_ap, name)])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["graphs", "sweep"])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=None)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--method", nargs="+", choices=_METHODS, default=list(_METHODS))
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.images = options.images or ([128] if options.what == "graphs" else [32, 128, 512, 2048])
    return options


if __name__ == "__main__":
    main()
