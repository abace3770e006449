"""From anyone's OpenVINO IR embedding network to a bundle, with proof that the two give the same embeddings.

The truth is the file itself, as OpenVINO runs it in float32, fed one crop at a time with pixels that numpy has
pre-processed in float64. The bundle's graph, which has the pre-processing inside and takes any batch where it can, must
agree with that before anything is written (`foreign_proof`).

The files may come from anybody: OpenVINO reads them with its own operators alone, and no library of theirs is loaded.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import openvino
from openvino import opset13 as operators
from openvino.preprocess import ColorFormat, PrePostProcessor

from reidkit.bundle import IR_MODEL, IR_WEIGHTS, Golden, IrGraph, check_place
from reidkit.deploy.foreign_proof import (
    ImageInput,
    Imported,
    Layout,
    Run,
    check_finite,
    check_size,
    embed_one_by_one,
    find_layout,
    network_input,
    with_largest_batch,
    write_foreign,
)
from reidkit.deploy.openvino_ir import WEIGHTS_SUFFIX
from reidkit.errors import ModelError
from reidkit.golden import golden_crops
from reidkit.manifest import LicenceClass
from reidkit.runtime.contract import CROPS, EMBEDDINGS, engine_words
from reidkit.runtime.openvino_core import CORE
from reidkit.types import InputSpec, Precision, Progress, Task, no_progress

_IMAGE_TYPES = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}
_FLOATS = ("f16", "f32", "f64")
_EIGHT_BITS_OR_LESS = ("i8", "u8", "i4", "u4")
_LAYOUTS: dict[str, Layout] = {"[N,C,H,W]": "nchw", "[N,H,W,C]": "nhwc"}
_EXPECTED = "one input, float32 or float16, of shape (n, 3, height, width) or (n, height, width, 3)"
_POINTER = b"version https://git-lfs"
_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


def ir_input_size(file: Path | str, *, layout: Layout | None = None) -> tuple[int, int] | None:
    """The height and width that an OpenVINO IR states for its image input, or None where it takes any.

    Raises:
        ModelError: no OpenVINO IR, or one without exactly one image input.
    """
    file = Path(file)
    image = _find_image_input(_read(file), file, layout)
    return None if image.height is None or image.width is None else (image.height, image.width)


def import_ir(
    file: Path | str,
    out: Path | str,
    *,
    spec: InputSpec,
    task: Task = "person",
    licence: LicenceClass = "unknown",
    output: str | None = None,
    layout: Layout | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Imported:
    """Makes a bundle of an OpenVINO IR embedding network; the engine that can read it is openvino.

    Args:
        file: the network, from normalised pixels to embeddings: `NAME.xml`, with `NAME.bin` beside it.
        out: the bundle, `NAME.reid`. Its source is both files, and the sha256 that of the .xml followed by the .bin.
        spec: size of its crops and the pre-processing it was trained with.
        task: what it tells apart.
        licence: class of licence of the weights.
        output: name of the output that holds the embeddings, where there are several.
        layout: order of its input's axes; None reads it off the graph.
        overwrite: replace a bundle that is already there.
        progress: called as golden crops are embedded.

    Raises:
        ModelError: the files are no IR, are damaged, cannot be run, are not one image in and one embedding out, want
            another size, give NaN, or do not give the same embeddings with their pre-processing inside.
        OutputError: the place is taken or cannot be written to.
        BundleError: the name of the bundle does not end in `.reid`.
    """
    file, out = Path(file), Path(out)
    check_place(out, overwrite=overwrite)
    network = _read(file)
    image = _find_image_input(network, file, layout)
    check_size(image, spec, file)
    crops, names = golden_crops(spec), [_name(port) for port in network.outputs]
    request = _compiled(network, file).create_infer_request()
    chosen, embeddings = embed_one_by_one(
        lambda pixels, wanted: _infer(request, pixels, names, wanted),
        names,
        image,
        network_input(crops, spec, image),
        output=output,
        file=file,
        words=engine_words,
        progress=progress,
    )
    check_finite(embeddings, _float_weights(network), file)
    golden, precision = Golden(crops, embeddings), _precision(network)

    def inside(batch: int | None) -> IrGraph:
        place = names.index(chosen.name)
        return _serialised(_with_preprocessing(_read(file), image, place, spec, dim=embeddings.shape[1], batch=batch))

    graph, batch, notes = with_largest_batch(
        [lambda: inside(None)],
        lambda: inside(image.batch or 1),
        _running,
        image=image,
        golden=golden,
        precision=precision,
        file=file,
        words=engine_words,
    )
    progress(len(crops) + 1, len(crops) + 1)
    weights = file.with_suffix(WEIGHTS_SUFFIX)
    return write_foreign(
        out,
        graph,
        golden,
        spec=spec,
        batch=batch,
        precision=precision,
        source=f"{file.name} and {weights.name}",
        source_sha256=hashlib.sha256(file.read_bytes() + weights.read_bytes()).hexdigest(),
        framework=f"openvino {openvino.__version__}",
        task=task,
        licence=licence,
        notes=notes,
        overwrite=overwrite,
    )


def _read(file: Path) -> openvino.Model:
    """Reads both files, after a look at what they are.

    Raises:
        ModelError: one is not there, empty, something else, or damaged.
    """
    weights = file.with_suffix(WEIGHTS_SUFFIX)
    for path, what in ((file, "the .xml of an OpenVINO IR"), (weights, f"the weights of {file.name}, beside it")):
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "does not exist"
            fix = "check the path" if path == file else "copy both files of the IR into one folder"
            raise ModelError(f"{path} {found}", expected=what, fix=fix)
        with path.open("rb") as stream:
            head = stream.read(4096)
        if not head and path == file:
            raise ModelError(f"{path} is empty", expected=what, fix="download or convert it again")
        if head.startswith(_POINTER):
            got = "a Git LFS pointer, not the file it stands for"
            raise ModelError(f"{path} is not {what}", got=got, fix="fetch it with `git lfs pull`")
        if path == file and b"<net " not in head:
            got = f"{file.stat().st_size:,} bytes that begin with {head[:24]!r}"
            raise ModelError(f"{path} is not {what}", got=got, expected="XML with <net ...>", fix="check the path")
    try:
        return CORE.read_model(str(file), str(weights))
    except Exception as error:  # a RuntimeError, whatever it is
        raise ModelError(
            f"openvino {openvino.__version__} cannot read {file} with {weights.name}",
            got=engine_words(error),
            expected="two whole files that belong together, of IR version 10 or newer",
            fix="download both files again, or convert the network again",
        ) from error


def _find_image_input(network: openvino.Model, file: Path, layout: Layout | None) -> ImageInput:
    inputs = network.inputs
    if len(inputs) != 1:
        got = "; ".join(map(_describe, inputs)) or "no input"
        what = "takes more than an image" if inputs else "takes no input"
        fix = "convert the network with one image input"
        raise ModelError(f"{file} {what}", got=got, expected=_EXPECTED, fix=fix)
    port, dims = inputs[0], _dims(inputs[0])
    kind = port.get_element_type().get_type_name()
    if _name(port) == CROPS and kind == "u8" and [_name(result) for result in network.outputs] == [EMBEDDINGS]:
        raise ModelError(
            f"{file} is reidkit's own export, not a foreign network",
            got=f"{_describe(port)}, with the pre-processing inside",
            fix="use the bundle that it was exported from: it runs on openvino as it is",
        )
    if dims is None or len(dims) != 4 or kind not in _IMAGE_TYPES:
        fix = "convert the part of the network that goes from normalised pixels to the embedding"
        raise ModelError(f"{file} does not take float images", got=_describe(port), expected=_EXPECTED, fix=fix)
    stated = layout or _LAYOUTS.get(str(port.get_node().layout))
    layout = find_layout(dims, stated, _describe(port), file)
    height, width = (dims[2], dims[3]) if layout == "nchw" else (dims[1], dims[2])
    return ImageInput(_name(port), layout, _IMAGE_TYPES[kind], dims[0], height, width)


def _dims(port: openvino.Output) -> list[int | None] | None:
    """Static sizes, None for a dynamic axis; None where not even the rank is known."""
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return None
    return [dim.get_length() if dim.is_static else None for dim in shape]


def _describe(port: openvino.Output) -> str:
    kind, dims = port.get_element_type().to_dtype(), _dims(port)
    if dims is None:
        return f"{_name(port)!r} {kind} of unknown shape"
    return f"{_name(port)!r} {kind} ({', '.join('?' if dim is None else str(dim) for dim in dims)})"


def _name(port: openvino.Output) -> str:
    """Of the tensor; where it has none, of the operator that makes it."""
    if names := sorted(port.get_names()):
        return names[0]
    node = port.get_node()
    source = node.input_value(0).get_node() if node.get_type_name() == "Result" else node
    return source.get_friendly_name()


def _compiled(network: openvino.Model, file: Path) -> openvino.CompiledModel:
    try:
        return CORE.compile_model(network, "CPU", _FLOAT32)
    except Exception as error:
        raise ModelError(
            f"openvino {openvino.__version__} cannot run {file}",
            got=engine_words(error),
            fix="update openvino, or convert the network again with standard operators",
        ) from error


def _infer(
    request: openvino.InferRequest, pixels: np.ndarray, names: Sequence[str], wanted: Sequence[str]
) -> dict[str, np.ndarray]:
    results = request.infer({0: pixels})
    return {name: results[names.index(name)].copy() for name in wanted}


def _float_weights(network: openvino.Model) -> Iterator[tuple[str, np.ndarray]]:
    for node in network.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type().get_type_name() in _FLOATS:
            yield node.get_friendly_name(), node.data


def _precision(network: openvino.Model) -> Precision:
    """int8 where activations are quantised or weights have eight bits; 16-bit weights are computed with in float32."""
    for node in network.get_ops():
        kind = node.get_type_name()
        small = kind == "Constant" and node.get_element_type().get_type_name() in _EIGHT_BITS_OR_LESS
        # Weights have several axes; sizes and axes, which may be small numbers too, have one.
        if kind == "FakeQuantize" or (small and len(node.get_output_shape(0)) > 1):
            return "int8"
    return "float32"


def _with_preprocessing(
    network: openvino.Model, image: ImageInput, place: int, spec: InputSpec, *, dim: int, batch: int | None
) -> openvino.Model:
    """Puts the spec's pre-processing in front of a network and cuts it down to one output.

    The result takes `crops`, uint8 (n, height, width, 3) RGB, and gives `embeddings`, float32 (n, dim).
    """
    sizes = (3, spec.height, spec.width) if image.layout == "nchw" else (spec.height, spec.width, 3)
    network.reshape({0: openvino.PartialShape([-1 if batch is None else batch, *sizes])})
    source = network.outputs[place].get_node().input_value(0)
    flat = operators.reshape(source, np.array([-1 if batch is None else batch, dim], np.int64), special_zero=False)
    result = operators.result(operators.convert(flat, "f32"))
    name = network.get_friendly_name()
    cut = openvino.Model([result], network.get_parameters(), name)  # pyright: ignore[reportGeneralTypeIssues] (stubs)
    steps = PrePostProcessor(cut)
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().tensor().set_color_format(ColorFormat.RGB)
    steps.input().model().set_layout(openvino.Layout(image.layout.upper()))
    steps.input().preprocess().convert_element_type(openvino.Type.f32)
    if spec.color == "bgr":
        steps.input().preprocess().convert_color(ColorFormat.BGR)
    if spec.scale != 1:
        steps.input().preprocess().scale(spec.scale)
    if any(spec.mean):
        steps.input().preprocess().mean(list(spec.mean))
    if spec.std != (1, 1, 1):
        steps.input().preprocess().scale(list(spec.std))
    built = steps.build()
    built.inputs[0].get_tensor().set_names({CROPS})
    built.outputs[0].get_tensor().set_names({EMBEDDINGS})
    return built


def _serialised(network: openvino.Model) -> IrGraph:
    with TemporaryDirectory() as folder:
        xml, weights = Path(folder, IR_MODEL), Path(folder, IR_WEIGHTS)
        openvino.serialize(network, str(xml), str(weights))
        return IrGraph(xml.read_bytes(), weights.read_bytes())


def _running(graph: IrGraph) -> Run:
    """As the bundle's graph will be read: from what was written."""
    with TemporaryDirectory() as folder:
        xml, weights = Path(folder, IR_MODEL), Path(folder, IR_WEIGHTS)
        xml.write_bytes(graph.xml)
        weights.write_bytes(graph.weights)
        compiled = CORE.compile_model(str(xml), "CPU", _FLOAT32)
    request = compiled.create_infer_request()
    return lambda crops: request.infer({0: crops})[0].copy()
