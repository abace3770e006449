"""From anyone's ONNX embedding network to a bundle, with proof that the two give the same embeddings.

The truth is the file itself, as ONNX Runtime runs it, fed one crop at a time with pixels that numpy has pre-processed
in float64. The bundle's graph, which has the pre-processing inside and takes any batch where it can, must agree with
that before anything is written (`foreign_proof`).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import EncodeError

from reidkit.bundle import Golden, check_place, file_sha256
from reidkit.deploy.foreign_graph import find_image_input
from reidkit.deploy.foreign_proof import (
    ImageInput,
    Imported,
    Layout,
    Run,
    check_finite,
    check_size,
    embed_one_by_one,
    network_input,
    with_largest_batch,
    write_foreign,
)
from reidkit.deploy.graph_rewriting import with_free_reshapes, with_preprocessing
from reidkit.errors import ModelError
from reidkit.golden import golden_crops
from reidkit.manifest import LicenceClass
from reidkit.onnx_file import first_line, read_model, too_large
from reidkit.runtime.contract import CROPS, EMBEDDINGS
from reidkit.types import InputSpec, Precision, Progress, Task, no_progress


def graph_input_size(file: Path | str, *, layout: Layout | None = None) -> tuple[int, int] | None:
    """The height and width that an ONNX file states for its image input, or None where it takes any.

    Raises:
        ModelError: not an ONNX file, or one without exactly one image input.
    """
    file = Path(file)
    image = find_image_input(read_model(file, with_weights=False), file, layout)
    return None if image.height is None or image.width is None else (image.height, image.width)


def import_onnx(
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
    """Makes a bundle of an ONNX embedding network.

    Args:
        file: the network, from normalised pixels to embeddings; its weights may lie in files beside it.
        out: the bundle, `NAME.reid`.
        spec: size of its crops and the pre-processing it was trained with.
        task: what it tells apart.
        licence: class of licence of the weights.
        output: name of the output that holds the embeddings, where there are several.
        layout: order of its input's axes; None reads it off the graph.
        overwrite: replace a bundle that is already there.
        progress: called as golden crops are embedded.

    Raises:
        ModelError: the file is no ONNX, is damaged, cannot be run, is not one image in and one embedding out, wants
            another size, gives NaN, or does not give the same embeddings with its pre-processing inside.
        OutputError: the place is taken or cannot be written to.
        BundleError: the name of the bundle does not end in `.reid`.
    """
    file, out = Path(file), Path(out)
    check_place(out, overwrite=overwrite)
    model = read_model(file)
    image = find_image_input(model, file, layout)
    check_size(image, spec, file)
    crops = golden_crops(spec)
    session = _opened(file)
    chosen, embeddings = embed_one_by_one(
        lambda pixels, names: dict(zip(names, session.run(names, {image.name: pixels}), strict=True)),
        [value.name for value in session.get_outputs()],
        image,
        network_input(crops, spec, image),
        output=output,
        file=file,
        words=first_line,
        progress=progress,
    )
    check_finite(embeddings, _float_weights(model), file)
    golden, precision = Golden(crops, embeddings), _precision(model, image)

    def inside(network: onnx.ModelProto, batch: int | None) -> bytes:
        dim = embeddings.shape[1]
        return _serialised(with_preprocessing(network, image, chosen.name, spec, dim=dim, batch=batch), file)

    def freed() -> bytes | None:
        network = with_free_reshapes(model, image.batch or 1)
        return None if network is None else inside(network, None)

    graph, batch, notes = with_largest_batch(
        [lambda: inside(model, None), freed],
        lambda: inside(model, image.batch or 1),
        _running,
        image=image,
        golden=golden,
        precision=precision,
        file=file,
        words=first_line,
    )
    progress(len(crops) + 1, len(crops) + 1)
    return write_foreign(
        out,
        graph,
        golden,
        spec=spec,
        batch=batch,
        precision=precision,
        source=file.name,
        source_sha256=file_sha256(file),
        framework=f"onnxruntime {onnxruntime.__version__}",
        task=task,
        licence=licence,
        notes=notes,
        overwrite=overwrite,
    )


def _opened(file: Path) -> onnxruntime.InferenceSession:
    try:
        return _session(str(file))
    except Exception as error:  # onnxruntime's errors have no base class of their own
        raise ModelError(
            f"onnxruntime {onnxruntime.__version__} cannot open {file}",
            got=first_line(error),
            fix="update onnxruntime, or export the network with standard operators of an older opset",
        ) from error


def _running(graph: bytes) -> Run:
    session = _session(graph)
    return lambda crops: np.asarray(session.run([EMBEDDINGS], {CROPS: crops})[0])


def _float_weights(model: onnx.ModelProto) -> Iterator[tuple[str, np.ndarray]]:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    for tensor in model.graph.initializer:
        if tensor.data_type in floats:
            yield tensor.name, onnx.numpy_helper.to_array(tensor)


def _precision(model: onnx.ModelProto, image: ImageInput) -> Precision:
    """The coarsest arithmetic of a network, by the types of its weights and of its input."""
    kind = onnx.TensorProto
    types = {tensor.data_type for tensor in model.graph.initializer}
    if types & {kind.INT8, kind.UINT8}:
        return "int8"
    if kind.BFLOAT16 in types:
        return "bfloat16"
    return "float16" if kind.FLOAT16 in types or image.dtype == np.float16 else "float32"


def _serialised(model: onnx.ModelProto, file: Path) -> bytes:
    try:
        return model.SerializeToString(deterministic=True)
    except (ValueError, EncodeError) as error:
        raise too_large(file) from error


def _session(source: str | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failure comes as an exception; the library would print it as well
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
